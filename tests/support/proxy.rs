//! A proxy before a registry that misbehaves on demand. It serves one request a connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use crate::registry::Registry;

/// What is done to a request, or to its answer.
#[derive(Clone, Debug)]
pub(crate) enum Misdeed {
    /// The connection breaks when so many bytes of the body of a request that has more have passed.
    CutRequest(usize),
    /// The connection breaks when so many bytes of the answer's body have passed.
    CutAnswer(usize),
    /// The same, and how many there are to come was not told.
    #[allow(dead_code)] // not every test binary has a use for it
    CutAnswerWithoutLength(usize),
    /// The registry does as it is asked, and its answer does not arrive.
    LoseAnswer,
    /// This is answered instead: a status, and headers.
    Answer(&'static str, Vec<(String, String)>),
    /// This is answered instead: a media type, and a body.
    #[allow(dead_code)] // not every test binary has a use for it
    Serve(&'static str, Vec<u8>),
    /// A request whose body has more bytes is answered by 413.
    TooLarge(usize),
    /// The answer comes without this header.
    WithoutHeader(&'static str),
    /// The answer comes with this header instead of the registry's own.
    Header(&'static str, String),
    /// The request comes without this header.
    WithoutAsking(&'static str),
    /// The request comes without its query.
    WithoutQuery,
    /// The answer leads to the same path at this host, signed with the number of the redirect.
    Redirect(String),
    /// The answer comes after this time.
    Delay(Duration),
    /// So many bytes a second pass in either direction.
    Throttle(usize),
    /// The request goes on when as many are there as these wait for; its body stays where it is until then.
    #[allow(dead_code)] // not every test binary has a use for it
    Together(Arc<Barrier>),
}

impl Misdeed {
    /// A refusal that asks for a pause of so many seconds.
    pub(crate) fn pause(status: &'static str, seconds: u32) -> Self {
        Self::Answer(status, vec![("retry-after".to_owned(), seconds.to_string())])
    }

    /// So many bytes of the answer's body pass, at most.
    fn answered(&self) -> usize {
        match self {
            Self::CutAnswer(bytes) | Self::CutAnswerWithoutLength(bytes) => *bytes,
            _ => usize::MAX,
        }
    }
}

struct Rule {
    method: &'static str,
    part: String,
    times: usize,
    misdeed: Misdeed,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    /// How many bytes of its body passed.
    pub(crate) passed: usize,
    /// How many bytes of the answer's body passed.
    pub(crate) answered: usize,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn length(&self) -> usize {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// A proxy that is running; it ends with the process of the test.
pub(crate) struct Proxy {
    address: String,
    desk: Arc<Desk>,
}

struct Desk {
    registry: String,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Request>>,
    under_way: Mutex<UnderWay>,
}

/// How many requests wait for their answer to begin.
#[derive(Default)]
struct UnderWay {
    now: usize,
    most: usize,
}

/// A request whose answer has not begun.
struct Waiting<'a>(&'a Desk);

impl<'a> Waiting<'a> {
    fn at(desk: &'a Desk) -> Self {
        let mut under_way = desk.under_way.lock().expect("nobody panicked");
        under_way.now += 1;
        under_way.most = under_way.most.max(under_way.now);
        Self(desk)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.under_way.lock().expect("nobody panicked").now -= 1;
    }
}

impl Proxy {
    pub(crate) fn before(registry: &Registry) -> Self {
        Self::to(registry.host())
    }

    /// A proxy before any server that speaks HTTP.
    pub(crate) fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound").to_string();
        let desk = Arc::new(Desk {
            registry: server.to_owned(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            under_way: Mutex::default(),
        });
        let shared = desk.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let desk = shared.clone();
                // A connection that broke is what tests are about.
                thread::spawn(move || drop(desk.serve(&client)));
            }
        });
        Self { address, desk }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> &str {
        &self.address
    }

    /// To so many of the next requests of a method whose target has `part`. The rule that was made first goes first.
    pub(crate) fn does(&self, misdeed: Misdeed, method: &'static str, part: &str, times: usize) {
        let rule = Rule { method, part: part.to_owned(), times, misdeed };
        self.desk.rules.lock().expect("nobody panicked").push(rule);
    }

    /// From now on it behaves.
    pub(crate) fn behaves(&self) {
        self.desk.rules.lock().expect("nobody panicked").clear();
    }

    /// The requests that came, in their order.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.desk.seen.lock().expect("nobody panicked").clone()
    }

    /// How many requests of a method came whose target has `part`.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let seen = self.seen();
        seen.iter().filter(|request| request.method == method && request.target.contains(part)).count()
    }

    /// How many requests there were at once, at most, whose answers had not begun.
    #[allow(dead_code)] // not every test binary has a use for it
    pub(crate) fn most_at_once(&self) -> usize {
        self.desk.under_way.lock().expect("nobody panicked").most
    }

    /// How many bytes of answers have passed.
    #[allow(dead_code)] // not every test binary has a use for it
    pub(crate) fn answered(&self) -> usize {
        self.seen().iter().map(|request| request.answered).sum()
    }

    /// How many bytes of requests have passed.
    pub(crate) fn passed(&self) -> usize {
        self.seen().iter().map(|request| request.passed).sum()
    }
}

impl Desk {
    fn misdeed(&self, request: &Request) -> Option<(Misdeed, usize)> {
        let mut rules = self.rules.lock().expect("nobody panicked");
        let fits = |rule: &&mut Rule| {
            let is_small = matches!(rule.misdeed, Misdeed::TooLarge(limit) | Misdeed::CutRequest(limit) if request.length() <= limit);
            rule.times > 0
                && rule.method == request.method
                && request.target.contains(&rule.part)
                && !is_small
        };
        let rule = rules.iter_mut().find(fits)?;
        rule.times -= 1;
        Some((rule.misdeed.clone(), usize::MAX - rule.times))
    }

    fn serve(&self, mut client: &TcpStream) -> io::Result<()> {
        let mut from_client = BufReader::new(client);
        let (mut line, headers) = head(&mut from_client)?;
        let waiting = Waiting::at(self);
        let mut words = line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let request = Request { method, target, headers, passed: 0, answered: 0 };
        let place = {
            let mut seen = self.seen.lock().expect("nobody panicked");
            seen.push(request.clone());
            seen.len() - 1
        };
        let (misdeed, number) = self.misdeed(&request).unzip();
        let header = |name: &str, value: String| (name.to_owned(), value);
        let instead = match &misdeed {
            Some(Misdeed::Answer(status, headers)) => Some((*status, headers.clone())),
            Some(Misdeed::TooLarge(_)) => Some(("413 Content Too Large", Vec::new())),
            Some(Misdeed::Redirect(to)) => {
                let signature = number.unwrap_or_default();
                let location = format!("http://{to}{}?signature={signature}", request.target);
                Some(("307 Temporary Redirect", vec![header("location", location)]))
            }
            _ => None,
        };
        if let Some((status, mut headers)) = instead {
            // A client that is still sending would not see the answer of a connection that was reset.
            io::copy(&mut from_client.by_ref().take(request.length() as u64), &mut io::sink())?;
            headers
                .extend([header("content-length", "0".to_owned()), header("connection", "close".to_owned())]);
            drop(waiting);
            return put_head(client, &format!("HTTP/1.1 {status}"), &headers);
        }

        if let Some(Misdeed::Serve(media_type, body)) = &misdeed {
            let headers = [
                header("content-type", (*media_type).to_owned()),
                header("content-length", body.len().to_string()),
                header("connection", "close".to_owned()),
            ];
            drop(waiting);
            put_head(client, "HTTP/1.1 200 OK", &headers)?;
            let is_head = request.method == "HEAD";
            return if is_head { Ok(()) } else { client.write_all(body) };
        }

        let mut registry = TcpStream::connect(&self.registry)?;
        let mut asked = request.headers.clone();
        asked.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
        asked.push(header("connection", "close".to_owned()));
        match &misdeed {
            Some(Misdeed::WithoutAsking(dropped)) => {
                asked.retain(|(name, _)| !name.eq_ignore_ascii_case(dropped));
            }
            Some(Misdeed::Together(all)) => drop(all.wait()),
            Some(Misdeed::WithoutQuery) => {
                let path = request.target.split('?').next().unwrap_or_default();
                line = format!("{} {path} HTTP/1.1", request.method);
            }
            _ => {}
        }
        put_head(&registry, &line, &asked)?;
        let rate = match &misdeed {
            Some(Misdeed::Throttle(rate)) => Some(*rate),
            _ => None,
        };
        let length = match &misdeed {
            Some(Misdeed::CutRequest(limit)) => *limit,
            _ => request.length(),
        };
        copy(&mut from_client, &mut registry, length, rate, |passed| {
            self.seen.lock().expect("nobody panicked")[place].passed += passed;
        })?;
        match &misdeed {
            Some(Misdeed::CutRequest(_)) => {
                registry.shutdown(Shutdown::Both)?;
                return client.shutdown(Shutdown::Both);
            }
            Some(Misdeed::Delay(time)) => thread::sleep(*time),
            _ => {}
        }

        let mut from_registry = BufReader::new(registry);
        let (line, mut headers) = head(&mut from_registry)?;
        match &misdeed {
            Some(Misdeed::LoseAnswer) => return client.shutdown(Shutdown::Both),
            Some(Misdeed::WithoutHeader(dropped)) => {
                headers.retain(|(name, _)| !name.eq_ignore_ascii_case(dropped));
            }
            Some(Misdeed::Header(replaced, value)) => {
                headers.retain(|(name, _)| !name.eq_ignore_ascii_case(replaced));
                headers.push(header(replaced, value.clone()));
            }
            Some(Misdeed::CutAnswerWithoutLength(_)) => {
                headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-length"));
            }
            _ => {}
        }
        drop(waiting);
        put_head(client, &line, &headers)?;
        let limit = misdeed.as_ref().map_or(usize::MAX, Misdeed::answered);
        copy(&mut from_registry, &mut client, limit, rate, |answered| {
            self.seen.lock().expect("nobody panicked")[place].answered += answered;
        })?;
        client.shutdown(Shutdown::Both)
    }
}

fn put_head(mut to: &TcpStream, first: &str, headers: &[(String, String)]) -> io::Result<()> {
    let mut head = Vec::new();
    write!(head, "{first}\r\n")?;
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n")?;
    }
    head.extend(b"\r\n");
    to.write_all(&head)
}

/// The first line, and the headers.
fn head(from: &mut impl BufRead) -> io::Result<(String, Vec<(String, String)>)> {
    let mut line = || {
        let mut line = String::new();
        from.read_line(&mut line)?;
        Ok::<_, io::Error>(line.trim_end().to_owned())
    };
    let (first, mut headers) = (line()?, Vec::new());
    while let Some((name, value)) = line()?.split_once(':') {
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok((first, headers))
}

/// Passes so many bytes on at most, at most so many a second.
fn copy(
    from: &mut impl Read,
    to: &mut impl Write,
    mut left: usize,
    rate: Option<usize>,
    mut passed: impl FnMut(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    while left > 0 {
        let wanted = left.min(buffer.len());
        let length = from.read(&mut buffer[..wanted])?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
        passed(length);
        left -= length;
        if let Some(rate) = rate {
            thread::sleep(
                Duration::from_secs(1) * u32::try_from(length).unwrap_or(u32::MAX)
                    / u32::try_from(rate).unwrap_or(1),
            );
        }
    }
    Ok(())
}
