//! `push-payload`, argument by argument. The payloads are docker-charon's, so that no more than one word changes.

use crate::table::{Row, Stdin, assert_section};

fn row(argument: &'static str, words: &'static [&'static str]) -> Row {
    Row::new("push-payload", argument, words)
}

#[test]
fn push_payload_does_with_each_argument_what_the_documentation_says() {
    let file = |words| row("`-f`, `--file`", words);
    let strict = |words| row("`-s`, `--strict`", words);
    let registry = |words| row("`-r`, `--registry`", words);
    let insecure = |words| row("`-i`, `--insecure`", words);
    let user = |words| row("`-u`, `--username`; `-p`, `--password`", words);
    let variables = |words| row("`DOCKER_CHARON_USERNAME`, `DOCKER_CHARON_PASSWORD`", words);
    let authorities = |words| row("`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`", words);
    let other = |words| row("anything else", words);
    assert_section(
        "push-payload",
        &[
            file(&["-i", "-r", "TARGET", "-f", "two.zip"]),
            file(&["-i", "-r", "TARGET", "--file", "two.zip"]).once(),
            file(&["-r", "TARGET", "-iftwo.zip"]).once(),
            file(&["-i", "-r", "TARGET", "-f", "nothing.zip", "-f", "two.zip"]).once(),
            file(&["-i", "-r", "TARGET", "-f", "/dev/stdin"]).reading(Stdin::File("two.zip")).once(),
            file(&["-i", "-r", "TARGET", "-f", "/dev/stdin"]).reading(Stdin::Pipe("two.zip")).once()
                .deviates("a pipe is read as standard input is; docker-charon wants to seek in it"),
            file(&["-i", "-r", "TARGET"]).reading(Stdin::File("two.zip")),
            file(&["-i", "-r", "TARGET"]).reading(Stdin::Pipe("two.zip")),
            file(&["-i", "-r", "TARGET", "-f", "two.zip"]).far(&["top:1", "team/other:1"]),
            file(&["-i", "-r", "TARGET", "-f", "top.zip"]).far(&["base:1"]),
            file(&["-i", "-r", "TARGET", "-f", "top.zip"]),
            file(&["-i", "-r", "TARGET", "-f", "with-base.zip"]).far(&["base:1"]),
            file(&["-i", "-r", "TARGET", "-f", "with-base.zip"])
                .deviates("what can be whole is pushed and printed, and the status is 1; docker-charon stops at the first that cannot"),
            file(&["-i", "-r", "TARGET", "-f", "nothing.zip"]).once(),
            file(&["-i", "-r", "TARGET", "-f", ""]).once()
                .deviates("no file at all is a mistake in the command line, of which the status is 2"),
            file(&["-i", "-r", "TARGET", "-f", "no.zip"]).once(),
            file(&["-i", "-r", "TARGET", "-f", "truncated.zip"]).once(),
            file(&["-i", "-r", "TARGET"]),
            file(&["-i", "-r", "TARGET"]).reading(Stdin::Terminal).once()
                .deviates("nobody types a zip: it is a mistake in the command line, of which the status is 2"),
            file(&["-i", "-r", "TARGET"]).reading(Stdin::Pipe("truncated.zip")),
            strict(&["-s", "-i", "-r", "TARGET", "-f", "two.zip"]).once(),
            strict(&["-s", "-i", "-r", "TARGET", "-f", "with-base.zip"]).far(&["base:1"]),
            strict(&["-s", "-i", "-r", "TARGET", "-f", "with-base.zip"])
                .deviates("nothing is pushed; docker-charon has pushed what comes before the missing image"),
            strict(&["-s", "-s", "-i", "-r", "TARGET", "-f", "two.zip"]).once(),
            strict(&["--strict", "-i", "-r", "TARGET", "-f", "top.zip"]).far(&["base:1"]),
            strict(&["--strict", "-i", "-r", "TARGET", "-f", "top.zip"]),
            registry(&["-i", "--registry", "TARGET", "-f", "two.zip"]).once(),
            registry(&["-i", "-r", "127.0.0.1:1", "-r", "TARGET/", "-f", "two.zip"]).once(),
            registry(&["-f", "two.zip"]).through_a_proxy(),
            registry(&["-i", "-r", "", "-f", "two.zip"]).once()
                .deviates("no registry at all is a mistake in the command line, of which the status is 2"),
            registry(&["-i", "-r", "http://TARGET", "-f", "two.zip"]).once()
                .deviates("what is no host is a mistake in the command line, of which the status is 2"),
            registry(&["-i", "-r", "127.0.0.1:1", "-f", "two.zip"]).slow(),
            insecure(&["--insecure", "-r", "TARGET", "-f", "two.zip"]).once(),
            insecure(&["-r", "TARGET", "-f", "two.zip"]),
            user(&["-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "two.zip"]),
            user(&["-r", "LOCKED", "--username", "charon", "--password", "PASSWORD", "-f", "two.zip"]).once(),
            user(&["-r", "LOCKED", "-u", "charon", "-p", "wrong", "-f", "two.zip"]),
            user(&["-r", "LOCKED", "-f", "two.zip"]),
            user(&["-i", "-r", "PLAIN", "-u", "charon", "-p", "PASSWORD", "-f", "two.zip"])
                .deviates("whoever asks for plain HTTP may send a password over it; docker-charon's library refuses"),
            user(&["-i", "-r", "TARGET", "-u", "charon", "-f", "two.zip"])
                .once()
                .deviates("one without the other is a mistake in the command line, of which the status is 2"),
            user(&["-i", "-r", "TARGET", "-p", "PASSWORD", "-f", "two.zip"]).once().deviates("as above"),
            variables(&["-r", "LOCKED", "-f", "two.zip"])
                .variable("DOCKER_CHARON_USERNAME", "charon")
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD"),
            variables(&["-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "two.zip"]).once()
                .variable("DOCKER_CHARON_USERNAME", "nobody")
                .variable("DOCKER_CHARON_PASSWORD", "wrong"),
            variables(&["-r", "LOCKED"])
                .variable("DOCKER_CHARON_USERNAME", "charon")
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD")
                .reading(Stdin::Pipe("two.zip")),
            variables(&["-i", "-r", "TARGET", "-f", "two.zip"]).once()
                .variable("DOCKER_CHARON_USERNAME", "charon")
                .deviates("one without the other is a mistake in the command line, of which the status is 2"),
            variables(&["-i", "-r", "TARGET", "-f", "two.zip"]).once()
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD")
                .deviates("as above"),
            authorities(&["-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "two.zip"])
                .variable("REQUESTS_CA_BUNDLE", "AUTHORITY"),
            authorities(&["-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "two.zip"]).once()
                .variable("CURL_CA_BUNDLE", "AUTHORITY"),
            authorities(&["-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "two.zip"]).once()
                .variable("SSL_CERT_FILE", "AUTHORITY")
                .deviates("the variables of OpenSSL are read, too, and go before those of Python's requests"),
            other(&["--help"]).once(),
            other(&["two.zip", "-i", "-r", "TARGET"]).once(),
        ],
    );
}
