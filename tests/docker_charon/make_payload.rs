//! `make-payload`, argument by argument.

use crate::table::{Row, Stdout, assert_section};

fn row(argument: &'static str, words: &'static [&'static str]) -> Row {
    Row::new("make-payload", argument, words)
}

#[allow(clippy::too_many_lines)] // a table
#[test]
fn make_payload_does_with_each_argument_what_the_documentation_says() {
    let images = |words| row("`IMAGES`", words);
    let already_transferred = |words| row("`-a`, `--already-transferred`", words);
    let file = |words| row("`-f`, `--file`", words);
    let registry = |words| row("`-r`, `--registry`", words);
    let insecure = |words| row("`-i`, `--insecure`", words);
    let user = |words| row("`-u`, `--username`; `-p`, `--password`", words);
    let variables = |words| row("`DOCKER_CHARON_USERNAME`, `DOCKER_CHARON_PASSWORD`", words);
    let authorities = |words| row("`REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE`", words);
    let other = |words| row("anything else", words);
    assert_section(
        "make-payload",
        &[
            images(&["top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]),
            images(&["top:1,team/other:1", "-i", "-r", "SOURCE", "-f", "new.zip"]),
            images(&["team/other:1,top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            images(&["-i", "-r", "SOURCE", "-f", "new.zip", "--", "top:1"]).once(),
            images(&["top:1,base:1,top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            images(&[" top:1 ", "-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            images(&["top:1, base:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("blanks around each name are dropped, not only around all of them"),
            images(&["top:1", "base:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .deviates("several arguments are allowed: a shell's lists need no commas"),
            images(&["top", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("no tag means `latest`, as everywhere; docker-charon ends with a traceback"),
            images(&["top@DIGEST", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("a digest may be named; docker-charon takes a part of it for a tag"),
            images(&["top:1@DIGEST", "-i", "-r", "SOURCE", "-f", "new.zip"]).deviates("as above"),
            images(&["SOURCE/top:1", "-i", "-f", "new.zip"])
                .deviates("a name may name its registry, so that one payload takes images of several"),
            images(&["oci:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("images of OCI types are carried; docker-charon asks for Docker's only"),
            images(&["list:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("a list is carried with all its platforms; docker-charon gets the image for one of them"),
            images(&["nothing:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("no file appears unless it is whole; docker-charon leaves a zip without content"),
            images(&["top:1,nothing:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("as above; the journal has what was read, which the next run need not read again"),
            images(&["", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .deviates("no name at all is a mistake in the command line, of which the status is 2"),
            images(&["top:1,", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .deviates("an empty item is none, as an empty variable in a list gives it"),
            images(&["Top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .deviates("what can be no name is a mistake in the command line, of which the status is 2"),
            images(&["-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            already_transferred(&["top:1", "-a", "base:1", "-i", "-r", "SOURCE", "-f", "new.zip"]),
            already_transferred(&["top:1", "--already-transferred", "base:1", "-i", "-r", "SOURCE", "-f", "new.zip"]),
            already_transferred(&["top:1", "--already-transferred=base:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            already_transferred(&["top:1,team/other:1", "-a", "team/other:1,base:1", "-i", "-r", "SOURCE"]),
            already_transferred(&["top:1,base:1", "-a", "base:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("what is in both lists is only named, by both; charon says so on standard error"),
            already_transferred(&["base:1", "-a", "base:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).deviates("as above"),
            already_transferred(&["top:1", "-a", "team/other:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            already_transferred(&["top:1", "-a", "base:1", "-a", "team/other:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("each counts, not only the last"),
            already_transferred(&["top:1", "-a", "team/other:1, base:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("blanks around each name are dropped"),
            already_transferred(&["top:1", "-a", "", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .deviates("an empty list is a list, as an empty variable in a script gives it"),
            already_transferred(&["top:1", "-a", "nothing:1", "-i", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("no file appears unless it is whole, but the journal, as above"),
            file(&["top:1", "-i", "-r", "SOURCE", "--file", "new.zip"]).once(),
            file(&["top:1", "-i", "-r", "SOURCE", "--file=new.zip"]).once(),
            file(&["top:1", "-r", "SOURCE", "-ifnew.zip"]).once(),
            file(&["top:1", "-i", "-r", "SOURCE", "-f", "other.zip", "-f", "new.zip"]).once(),
            file(&["top:1", "-i", "-r", "SOURCE", "-f", "/dev/stdout"]).once(),
            file(&["top:1", "-i", "-r", "SOURCE", "-f", ""]).once()
                .deviates("no file at all is a mistake in the command line, of which the status is 2"),
            file(&["top:1", "-i", "-r", "SOURCE", "-f", "old.zip"]).once(),
            file(&["nothing:1", "-i", "-r", "SOURCE", "-f", "old.zip"])
                .deviates("a file that is there is kept unless the new one is whole"),
            file(&["top:1", "-i", "-r", "SOURCE", "-f", "nowhere/new.zip"]).once(),
            file(&["top:1", "-i", "-r", "SOURCE"]),
            file(&["top:1", "-i", "-r", "SOURCE"]).writing(Stdout::File),
            file(&["top:1", "-i", "-r", "SOURCE"])
                .writing(Stdout::Terminal)
                .once()
                .deviates("a terminal is spared the bytes of a zip"),
            registry(&["top:1", "-i", "--registry", "SOURCE", "-f", "new.zip"]).once(),
            registry(&["top:1", "-i", "--registry=SOURCE", "-f", "new.zip"]).once(),
            registry(&["top:1", "-i", "-r", "127.0.0.1:1", "-r", "SOURCE", "-f", "new.zip"]).once(),
            registry(&["top:1", "-i", "-r", "SOURCE/", "-f", "new.zip"]).once(),
            registry(&["top:1", "-i", "-r=SOURCE", "-f", "new.zip"]).once()
                .deviates("an equals sign behind a short option is no part of its value"),
            registry(&["top:1", "-i", "-r", "", "-f", "new.zip"]).once()
                .deviates("no registry at all is a mistake in the command line, of which the status is 2"),
            registry(&["top:1", "-i", "-r", "charon:PASSWORD@SOURCE", "-f", "new.zip"]).once()
                .deviates("a password is given apart from the registry, where it is not repeated in a message"),
            registry(&["top:1", "-f", "new.zip"]).through_a_proxy(),
            registry(&["top:1", "-r", "Registry-1.Docker.IO", "-f", "new.zip"]).through_a_proxy(),
            registry(&["top:1", "-r", "registry-1.docker.io", "-f", "new.zip"]).through_a_proxy(),
            registry(&["top:1", "-i", "-r", "http://SOURCE", "-f", "new.zip"]).once()
                .deviates("what is no host is a mistake in the command line, of which the status is 2"),
            registry(&["top:1", "-i", "-r", "127.0.0.1:1", "-f", "new.zip"])
                .slow()
                .deviates("no file appears unless it is whole; charon tries for half a minute"),
            insecure(&["top:1", "--insecure", "-r", "SOURCE", "-f", "new.zip"]).once(),
            insecure(&["top:1", "-i", "-i", "-r", "SOURCE", "-f", "new.zip"]).once(),
            insecure(&["top:1", "-r", "SOURCE", "-f", "new.zip"])
                .deviates("no file appears unless it is whole"),
            user(&["top:1", "-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"]),
            user(&["top:1", "-r", "LOCKED", "--username", "charon", "--password", "PASSWORD", "-f", "new.zip"]).once(),
            user(&["top:1", "-r", "LOCKED", "-u", "nobody", "-u", "charon", "-p", "wrong", "-p", "PASSWORD", "-f", "new.zip"])
                .once(),
            user(&["top:1", "-r", "LOCKED", "-u", "charon", "-p", "wrong", "-f", "new.zip"])
                .deviates("no file appears unless it is whole"),
            user(&["top:1", "-r", "LOCKED", "-f", "new.zip"]).deviates("no file appears unless it is whole"),
            user(&["top:1", "-i", "-r", "PLAIN", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"])
                .deviates("whoever asks for plain HTTP may send a password over it; docker-charon's library refuses"),
            user(&["top:1", "-i", "-r", "SOURCE", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"]).once(),
            user(&["top:1", "-i", "-r", "SOURCE", "-u", "charon", "-f", "new.zip"])
                .once()
                .deviates("one without the other is a mistake in the command line, of which the status is 2"),
            user(&["top:1", "-i", "-r", "SOURCE", "-p", "PASSWORD", "-f", "new.zip"]).once().deviates("as above"),
            variables(&["top:1", "-r", "LOCKED", "-f", "new.zip"])
                .variable("DOCKER_CHARON_USERNAME", "charon")
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD"),
            variables(&["top:1", "-r", "LOCKED", "-u", "charon", "-f", "new.zip"]).once()
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD"),
            variables(&["top:1", "-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"]).once()
                .variable("DOCKER_CHARON_USERNAME", "nobody")
                .variable("DOCKER_CHARON_PASSWORD", "wrong"),
            variables(&["top:1", "-r", "LOCKED", "-u", "", "-p", "", "-f", "new.zip"]).once()
                .variable("DOCKER_CHARON_USERNAME", "charon")
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD"),
            variables(&["top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .variable("DOCKER_CHARON_USERNAME", "")
                .variable("DOCKER_CHARON_PASSWORD", ""),
            variables(&["top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .variable("DOCKER_CHARON_USERNAME", "charon")
                .deviates("one without the other is a mistake in the command line, of which the status is 2"),
            variables(&["top:1", "-i", "-r", "SOURCE", "-f", "new.zip"]).once()
                .variable("DOCKER_CHARON_PASSWORD", "PASSWORD")
                .deviates("as above"),
            row("`NETRC`, `~/.netrc`", &["top:1", "-r", "LOCKED", "-f", "new.zip"]).once()
                .variable("NETRC", "netrc"),
            row("`NETRC`, `~/.netrc`", &["top:1", "-r", "LOCKED", "-u", "charon", "-p", "wrong", "-f", "new.zip"]).once()
                .variable("NETRC", "netrc")
                .deviates("what is given goes before what is found; docker-charon's library sends what is in the netrc"),
            row("`NETRC`, `~/.netrc`", &["top:1", "-i", "-r", "PLAIN", "-f", "new.zip"]).once()
                .variable("NETRC", "netrc"),
            authorities(&["top:1", "-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"])
                .variable("REQUESTS_CA_BUNDLE", "AUTHORITY"),
            authorities(&["top:1", "-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"]).once()
                .variable("CURL_CA_BUNDLE", "AUTHORITY"),
            authorities(&["top:1", "-r", "LOCKED", "-u", "charon", "-p", "PASSWORD", "-f", "new.zip"]).once()
                .variable("SSL_CERT_FILE", "AUTHORITY")
                .deviates("the variables of OpenSSL are read, too, and go before those of Python's requests"),
            other(&["--help"]).once(),
            other(&["top:1", "--nothing"]).once(),
            other(&["top:1", "-i", "-r"]).once(),
            other(&["--show-completion", "bash"]).without_command()
                .deviates("the command is `charon completion bash`"),
            other(&["--install-completion", "bash"]).without_command()
                .deviates("charon writes into nobody's home: `charon completion bash` prints the script"),
        ],
    );
}
