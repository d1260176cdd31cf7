//! Programs that a test runs: charon, and those that judge what it did.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread::{self, JoinHandle};

/// A program with all that it is given. It sees nothing of the environment that the test runs in.
pub(crate) struct Program {
    words: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    folder: Option<OsString>,
    stdin: Stdin,
    stdout: Stdio,
}

enum Stdin {
    Empty,
    Bytes(Vec<u8>),
    From(Stdio),
}

/// A program that is running. It does not outlive this.
pub(crate) struct Running {
    name: String,
    child: Child,
    feeder: Option<JoinHandle<()>>,
}

/// A program that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    command: String,
    /// The exit status, or none where a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// charon with these arguments.
pub(crate) fn charon<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Program {
    Program::new(env!("CARGO_BIN_EXE_charon"), arguments)
}

/// A program of the tests' own tools.
pub(crate) fn tool<S: AsRef<OsStr>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Program {
    Program::new(path_of(name), arguments)
}

/// Where a tool is; that it is there is up to the Makefile.
pub(crate) fn path_of(name: &str) -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("there is no {name} on PATH: run make test")).into_os_string()
}

/// What crane says of an image's digest.
pub(crate) fn crane_digest(name: &str) -> String {
    tool("crane", ["digest", "--insecure", name]).run().succeeded().text().trim().to_owned()
}

/// Lets crane read a whole image and check it.
pub(crate) fn crane_validates(name: &str) {
    tool("crane", ["validate", "--insecure", "--remote", name]).run().succeeded();
}

impl Program {
    fn new<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut words = vec![program.as_ref().to_owned()];
        words.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        // Docker's configuration of whoever runs the tests is none of theirs.
        let variables = [("HOME", "/nonexistent"), ("LC_ALL", "C.UTF-8")];
        Self {
            words,
            variables: variables.map(|(name, value)| (name.into(), value.into())).into(),
            folder: None,
            stdin: Stdin::Empty,
            stdout: Stdio::piped(),
        }
    }

    /// The same with more arguments.
    pub(crate) fn arguments<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.into(), value.as_ref().to_owned()));
        self
    }

    pub(crate) fn in_folder(mut self, folder: impl AsRef<OsStr>) -> Self {
        self.folder = Some(folder.as_ref().to_owned());
        self
    }

    /// Run by another program, which is given this one and its arguments as its last ones.
    pub(crate) fn by(mut self, name: &str, arguments: &[&str]) -> Self {
        let wrapper = std::iter::once(path_of(name)).chain(arguments.iter().map(OsString::from));
        self.words.splice(0..0, wrapper);
        self
    }

    /// Standard input is a pipe with these bytes.
    pub(crate) fn fed(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }

    /// Standard input is a file, or what another program writes.
    pub(crate) fn reading(mut self, source: impl Into<Stdio>) -> Self {
        self.stdin = Stdin::From(source.into());
        self
    }

    /// Standard output is a file.
    pub(crate) fn writing(mut self, file: File) -> Self {
        self.stdout = file.into();
        self
    }

    pub(crate) fn start(self) -> Running {
        let name = self.words[0].to_string_lossy().into_owned();
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.variables).stdout(self.stdout).stderr(Stdio::piped());
        if let Some(folder) = self.folder {
            command.current_dir(folder);
        }
        let bytes = match self.stdin {
            Stdin::Empty => {
                command.stdin(Stdio::null());
                None
            }
            Stdin::Bytes(bytes) => {
                command.stdin(Stdio::piped());
                Some(bytes)
            }
            Stdin::From(source) => {
                command.stdin(source);
                None
            }
        };
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {name}: {error}"));
        let feeder = bytes.zip(child.stdin.take()).map(|(bytes, mut stdin)| {
            // Whoever stops reading early has its reasons, and tells them.
            thread::spawn(move || drop(stdin.write_all(&bytes)))
        });
        Running { name, child, feeder }
    }

    pub(crate) fn run(self) -> Ended {
        self.start().end()
    }
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the program writes, for another to read.
    pub(crate) fn output(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap_or_else(|| panic!("the output of {} is taken", self.name))
    }

    /// Asks the program to stop.
    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    pub(crate) fn kill(&self) {
        self.signal(rustix::process::Signal::KILL);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw);
        let sent = id.map(|id| rustix::process::kill_process(id, signal));
        assert_eq!(sent, Some(Ok(())), "{signal:?} to {}", self.name);
    }

    /// Waits for the program's end.
    pub(crate) fn end(mut self) -> Ended {
        let mut stdout = self.child.stdout.take();
        let stdout = thread::spawn(move || {
            let mut bytes = Vec::new();
            let read = stdout.as_mut().map_or(Ok(0), |stdout| stdout.read_to_end(&mut bytes));
            read.map(|_| bytes)
        });
        let mut stderr = Vec::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_end(&mut stderr).expect("standard error can be read");
        }
        let status = self.child.wait().expect("a child can be waited for");
        let stdout = stdout.join().expect("reads to the end").expect("standard output can be read");
        if let Some(feeder) = self.feeder.take() {
            feeder.join().expect("writes to the end");
        }
        Ended::new(&self.name, Output { status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    fn new(command: &str, output: Output) -> Self {
        Self {
            command: command.to_owned(),
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        }
    }

    pub(crate) fn succeeded(self) -> Self {
        self.ended_with(0)
    }

    pub(crate) fn ended_with(self, status: i32) -> Self {
        let Self { command, stderr, .. } = &self;
        assert_eq!(self.status, Some(status), "{command} said: {stderr}");
        self
    }

    /// Standard output, where it is text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("the output is UTF-8")
    }
}
