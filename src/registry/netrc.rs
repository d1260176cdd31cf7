//! The netrc, which curl, git and Python's requests read, too, for the logins in it.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::access::{Credentials, Logins};
use crate::reference::Host;

/// No netrc is longer.
const NETRC_LIMIT: u64 = 4 << 20;
/// The token service of Docker Hub.
const DOCKER_HUB_TOKENS: &str = "auth.docker.io";

/// The logins of a netrc, by host.
#[derive(Clone, Default)]
pub struct Netrc {
    /// By host without its port; None where the host is to be asked anonymously.
    by_host: BTreeMap<String, Option<Credentials>>,
    /// What opens all other hosts.
    default: Option<Credentials>,
}

/// A netrc cannot be used. What it holds is not quoted: any word of it may be a password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetrcError {
    /// The file cannot be read.
    #[error("the netrc {} cannot be read: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is no netrc.
    #[error("the netrc {} cannot be read: at line {line}, {problem}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: &'static str,
    },
}

impl Netrc {
    /// The netrc of the user, as Python's requests finds it: the file that `$NETRC` names, or without that variable
    /// `~/.netrc`, or else `~/_netrc`.
    pub fn load_default() -> Result<Option<Self>, NetrcError> {
        let home = env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        let at_home = |path: &Path| home.as_ref().map(|home| home.join(path));
        let places = match env::var_os("NETRC").map(PathBuf::from) {
            Some(named) => vec![named.strip_prefix("~").ok().and_then(at_home).unwrap_or(named)],
            None => [".netrc", "_netrc"].iter().filter_map(|name| at_home(Path::new(name))).collect(),
        };
        Self::load_first(places)
    }

    /// What to sign in to `host` with: the entry of its name without the port, or else `default`.
    ///
    /// A token service may have an entry of its own, if the registry belongs to its domain as `registry.gitlab.com` does
    /// to `gitlab.com`: any registry can name any service, and would get the token that is given there.
    #[must_use]
    pub fn credentials(&self, host: &Host) -> Logins {
        let name = without_port(host);
        let domains = name.match_indices('.').map(|(dot, _)| &name[dot + 1..]);
        let services = domains.chain(host.is_docker_hub().then_some(DOCKER_HUB_TOKENS));
        let entry = |service: &str| Some((service.to_owned(), self.by_host.get(service)?.clone()?));
        Logins {
            everywhere: self.by_host.get(name).unwrap_or(&self.default).clone(),
            below: Vec::new(),
            at_token_services: services.filter_map(entry).collect(),
        }
    }

    fn load_first(places: impl IntoIterator<Item = PathBuf>) -> Result<Option<Self>, NetrcError> {
        for path in places {
            match read(&path) {
                Ok(text) => {
                    let parsed = Self::parse(&text).map(Some);
                    return parsed.map_err(|Fault { line, problem }| NetrcError::Syntax {
                        path,
                        line,
                        problem,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(NetrcError::File { path, source }),
            }
        }
        Ok(None)
    }

    /// Reads it as Python does: of two entries for one host the last one counts, and `default` may stand anywhere.
    fn parse(text: &[u8]) -> Result<Self, Fault> {
        let mut words = Words { rest: utf8(text)?, line: 1 };
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(keyword) = words.keyword()? {
            let line = words.line;
            let value = match (keyword.as_str(), entries.last_mut()) {
                ("machine", _) => {
                    entries.push(Entry { host: Some(words.value()?), ..Entry::default() });
                    continue;
                }
                ("default", _) => {
                    entries.push(Entry::default());
                    continue;
                }
                ("macdef", _) => {
                    words.pass_macro()?;
                    continue;
                }
                ("login" | "user", Some(entry)) => &mut entry.login,
                ("account", Some(entry)) => &mut entry.account,
                ("password", Some(entry)) => &mut entry.password,
                _ => {
                    let problem =
                        "there is a word that has no place in it; a value with spaces goes in quotes";
                    return Err(Fault { line, problem });
                }
            };
            *value = words.value()?;
        }
        let mut netrc = Self::default();
        for mut entry in entries {
            match entry.host.take() {
                Some(host) => drop(netrc.by_host.insert(canonical(&host), entry.credentials())),
                None => netrc.default = entry.credentials(),
            }
        }
        Ok(netrc)
    }
}

/// What is wrong, and at which line, from 1.
#[derive(Debug)]
struct Fault {
    line: usize,
    problem: &'static str,
}

/// What stands behind `machine`, or behind `default`, where there is no host. What is absent is empty.
#[derive(Default)]
struct Entry {
    host: Option<String>,
    login: String,
    account: String,
    password: String,
}

impl Entry {
    fn credentials(self) -> Option<Credentials> {
        let username = if self.login.is_empty() { self.account } else { self.login };
        let is_empty = username.is_empty() && self.password.is_empty();
        (!is_empty).then(|| Credentials::password(username, self.password))
    }
}

/// The words of a netrc that are still to be read.
struct Words<'a> {
    rest: &'a str,
    /// The line on which they begin, from 1.
    line: usize,
}

impl Words<'_> {
    /// The next word outside of comments.
    fn keyword(&mut self) -> Result<Option<String>, Fault> {
        loop {
            let word = self.next()?;
            if !word.as_ref().is_some_and(|word| word.starts_with('#')) {
                return Ok(word);
            }
            self.pass_line();
        }
    }

    /// The next word, whatever it is.
    fn value(&mut self) -> Result<String, Fault> {
        let line = self.line;
        self.next()?.ok_or(Fault { line, problem: "the last word has nothing behind it" })
    }

    /// The next word, without its quotes and backslashes. What ends it is not read.
    fn next(&mut self) -> Result<Option<String>, Fault> {
        while self.rest.starts_with(is_space) {
            self.read();
        }
        let line = self.line;
        let is_quoted = self.rest.starts_with('"');
        if is_quoted {
            self.read();
        }
        let mut word = String::new();
        while !(self.rest.is_empty() || !is_quoted && self.rest.starts_with(is_space)) {
            match self.read() {
                Some('"') if is_quoted => return Ok(Some(word)),
                Some('\\') => word.extend(self.read()),
                read => word.extend(read),
            }
        }
        if is_quoted {
            return Err(Fault { line, problem: "there is a quote that nothing closes" });
        }
        Ok(Some(word).filter(|word| !word.is_empty()))
    }

    /// A macro of ftp's: everything up to an empty line.
    fn pass_macro(&mut self) -> Result<(), Fault> {
        let line = self.line;
        self.value()?;
        self.pass_line();
        while !self.pass_line() {
            if self.rest.is_empty() {
                return Err(Fault { line, problem: "there is a macro that no empty line ends" });
            }
        }
        Ok(())
    }

    /// The rest of the line; whether it was empty.
    fn pass_line(&mut self) -> bool {
        let line = self.rest.split_once('\n').map_or(self.rest, |(line, _)| line);
        let is_empty = matches!(line, "" | "\r") && !self.rest.is_empty();
        while self.read().is_some_and(|read| read != '\n') {}
        is_empty
    }

    fn read(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let read = chars.next();
        self.rest = chars.as_str();
        self.line += usize::from(read == Some('\n'));
        read
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn utf8(text: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(text).map_err(|error| {
        let line = 1 + text.iter().take(error.valid_up_to()).filter(|byte| **byte == b'\n').count();
        Fault { line, problem: "it is not UTF-8" }
    })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(NETRC_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > NETRC_LIMIT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// The host as [`Host`] has it, where it can be one: Docker Hub has several names.
fn canonical(host: &str) -> String {
    host.parse::<Host>().map_or_else(|_| host.to_ascii_lowercase(), |host| host.as_str().to_owned())
}

/// The name, or the address without its brackets.
fn without_port(host: &Host) -> &str {
    let host = host.as_str();
    match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use secrecy::ExposeSecret as _;

    use super::*;

    fn shown(credentials: &Credentials) -> String {
        match credentials {
            Credentials::Password { username, password } => {
                format!("{username} {}", password.expose_secret())
            }
            Credentials::IdentityToken(_) => panic!("a netrc has none"),
        }
    }

    fn found(netrc: &str, host: &str) -> Option<String> {
        let logins = Netrc::parse(netrc.as_bytes()).unwrap().credentials(&host.parse().unwrap());
        logins.of("ferry").map(shown)
    }

    #[test]
    fn a_host_is_found_by_its_name_without_the_port() {
        for (machine, host) in [
            ("quay.io", "quay.io"),
            ("quay.io", "quay.io:5000"),
            ("Quay.IO", "quay.io"),
            ("127.0.0.1", "127.0.0.1:5000"),
            ("::1", "[::1]:5000"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io", "registry-1.docker.io"),
        ] {
            let netrc = format!("machine {machine} login user password secret");
            assert_eq!(found(&netrc, host).as_deref(), Some("user secret"), "{machine}");
            assert_eq!(found(&netrc, "other.example"), None);
        }
        assert_eq!(found("machine quay.io:5000 login user password secret", "quay.io:5000"), None);
    }

    #[test]
    fn a_netrc_is_read_as_python_reads_it() {
        for (netrc, expected) in [
            ("machine a.b\n\tlogin u\r\n\tpassword p\n", Some("u p")),
            ("machine a.b user u password p", Some("u p")),
            (r#"machine a.b login "u v" password "p \"q\" \\ r""#, Some(r#"u v p "q" \ r"#)),
            (r#"machine a.b login u password p\ "q"#, Some(r#"u p "q"#)),
            ("machine a.b login u password #p # q\n# machine a.b login v password r\n", Some("u #p")),
            ("#\n#x\nmachine a.b # y\n login u\n # z\n password p", Some("u p")),
            ("machine a.b account u password p", Some("u p")),
            ("machine a.b login u account v password p", Some("u p")),
            ("machine a.b login u", Some("u ")),
            ("machine a.b login u password \"\"", Some("u ")),
            ("machine a.b password p", Some(" p")),
            ("default login v password q machine a.b login u password p", Some("u p")),
            ("machine c.d login u password p default login v password q", Some("v q")),
            ("machine a.b default login v password q", None),
            ("machine a.b login u password p machine a.b login v password q", Some("v q")),
            ("macdef init\nmachine a.b\n login v\n\nmachine a.b login u password p", Some("u p")),
            ("machine a.b login u password p\nmacdef init\r\ncd x\r\n\r\n", Some("u p")),
            ("machine a.b login ü password 錨", Some("ü 錨")),
            ("", None),
        ] {
            assert_eq!(found(netrc, "a.b").as_deref(), expected, "{netrc}");
        }
    }

    #[test]
    fn a_token_service_has_an_entry_of_its_own_where_the_registry_belongs_to_its_domain() {
        let netrc = "machine gitlab.com login a password 1 machine auth.docker.io login b password 2 \
                     machine tokens.example login c password 3 default login d password 4";
        let netrc = Netrc::parse(netrc.as_bytes()).unwrap();
        let at = |host: &str, service: &str| {
            let logins = netrc.credentials(&host.parse().unwrap());
            logins.at_token_service(service).map(shown)
        };
        for (host, service, expected) in [
            ("registry.gitlab.com", "gitlab.com", Some("a 1")),
            ("docker.io", "auth.docker.io", Some("b 2")),
            ("notgitlab.com", "gitlab.com", None),
            ("evil.example", "auth.docker.io", None),
            ("evil.example", "tokens.example", None),
            ("a.tokens.example:5000", "tokens.example", Some("c 3")),
        ] {
            assert_eq!(at(host, service).as_deref(), expected, "{host} {service}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line_and_without_its_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netrc");
        let a_word = "there is a word that has no place in it; a value with spaces goes in quotes";
        let nothing = "the last word has nothing behind it";
        for (netrc, line, problem) in [
            (&b"secret"[..], 1, a_word),
            (b"login u password secret", 1, a_word),
            (b"machine a.b login u password my secret\n\n", 1, a_word),
            (b"machine a.b\nlogin u\npassword my\nsecret x", 4, a_word),
            (b"machine a.b\n login u\n password\n", 3, nothing),
            (b"\nmachine", 2, nothing),
            (
                b"machine a.b\nlogin u\npassword \"secret\nmachine c.d\n",
                3,
                "there is a quote that nothing closes",
            ),
            (b"\nmacdef secret\nsecret", 2, "there is a macro that no empty line ends"),
            (b"macdef secret", 1, "there is a macro that no empty line ends"),
            (b"machine a.b\nlogin u password secret\xff", 2, "it is not UTF-8"),
        ] {
            fs::write(&path, netrc).unwrap();
            let error = Netrc::load_first([path.clone()]).err().unwrap();
            let told = format!("the netrc {} cannot be read: at line {line}, {problem}", path.display());
            assert_eq!(error.to_string(), told);
            assert!(!format!("{error:?}").contains("secret"));
        }
    }

    #[test]
    fn the_first_netrc_that_is_there_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (absent, there) = (folder.path().join(".netrc"), folder.path().join("_netrc"));
        fs::write(&there, "default login u password p").unwrap();
        let netrc = Netrc::load_first([absent.clone(), there]).unwrap().unwrap();
        assert!(!netrc.credentials(&"a.b".parse().unwrap()).is_empty());
        assert!(Netrc::load_first([absent]).unwrap().is_none());
        let told = |path: PathBuf| Netrc::load_first([path]).err().unwrap().to_string();
        assert!(told(folder.path().to_owned()).ends_with("cannot be read: Is a directory (os error 21)"));
        let long = folder.path().join("long");
        fs::write(&long, vec![b' '; (4 << 20) + 1]).unwrap();
        assert!(told(long).ends_with("cannot be read: file too large"));
    }
}
