//! The table in docs/docker-charon.md: rows are tried with both programs, and what they did is written down.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::registry::Software;
use crate::stage::{Outcome, Stage, Who};

/// So many rows are tried at once: most of their time is waiting for others.
const AT_ONCE: usize = 4;

/// A command line, and whether the two do the same with it.
pub(crate) struct Row {
    argument: &'static str,
    command: &'static str,
    words: &'static [&'static str],
    pub(crate) variables: Vec<(&'static str, &'static str)>,
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Stdout,
    /// Images that the target has from the start.
    pub(crate) far: Vec<&'static str>,
    pub(crate) has_proxy: bool,
    is_tried_once: bool,
    is_slow: bool,
    deviation: Option<&'static str>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    Nothing,
    Pipe(&'static str),
    File(&'static str),
    Terminal,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdout {
    Pipe,
    File,
    Terminal,
}

impl Row {
    /// A row about `argument`: `words` without the command, with SOURCE, TARGET, LOCKED, PLAIN, PASSWORD, DIGEST and
    /// AUTHORITY in place of what they are in the run.
    pub(crate) fn new(command: &'static str, argument: &'static str, words: &'static [&'static str]) -> Self {
        Self {
            argument,
            command,
            words,
            variables: Vec::new(),
            stdin: Stdin::Nothing,
            stdout: Stdout::Pipe,
            far: Vec::new(),
            has_proxy: false,
            is_tried_once: false,
            is_slow: false,
            deviation: None,
        }
    }

    pub(crate) fn variable(mut self, name: &'static str, value: &'static str) -> Self {
        self.variables.push((name, value));
        self
    }

    pub(crate) fn reading(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    pub(crate) fn writing(mut self, stdout: Stdout) -> Self {
        self.stdout = stdout;
        self
    }

    /// The target has these images from the start.
    pub(crate) fn far(mut self, images: &[&'static str]) -> Self {
        self.far = images.to_vec();
        self
    }

    /// Only whom it asks is looked at.
    pub(crate) fn through_a_proxy(mut self) -> Self {
        self.has_proxy = true;
        self.once()
    }

    /// No registry has a part in it.
    pub(crate) fn once(mut self) -> Self {
        self.is_tried_once = true;
        self
    }

    /// Nobody answers, and that is waited for.
    pub(crate) fn slow(mut self) -> Self {
        self.is_slow = true;
        self.once()
    }

    /// The words are all that is typed.
    pub(crate) fn without_command(mut self) -> Self {
        self.command = "";
        self.once()
    }

    /// The two do not do the same, and why.
    pub(crate) fn deviates(mut self, why: &'static str) -> Self {
        self.deviation = Some(why);
        self
    }

    pub(crate) fn is_push(&self) -> bool {
        self.command == "push-payload"
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.stdin == Stdin::Terminal || self.stdout == Stdout::Terminal
    }

    pub(crate) fn words(&self) -> impl Iterator<Item = &str> {
        let command = Some(self.command).filter(|command| !command.is_empty());
        command.into_iter().chain(self.words.iter().copied())
    }

    /// The command line as people type it.
    fn typed(&self) -> String {
        let quoted = |word: &str| match word {
            "" => "''".to_owned(),
            word if word.contains(' ') => format!("'{word}'"),
            word => word.to_owned(),
        };
        let variables = self.variables.iter().map(|(name, value)| format!("{name}={} ", quoted(value)));
        let words = self.words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let mut typed = format!("{}{words}", variables.collect::<String>());
        match self.stdin {
            Stdin::Nothing | Stdin::Terminal => {}
            Stdin::Pipe(file) => typed = format!("cat {file} \\| … {typed}"),
            Stdin::File(file) => typed = format!("{typed} < {file}"),
        }
        match self.stdout {
            Stdout::Pipe | Stdout::Terminal => {}
            Stdout::File => typed += " > new.zip",
        }
        let mut typed = format!("`{}`", typed.trim());
        if self.stdin == Stdin::Terminal {
            typed += ", standard input a terminal";
        }
        if self.stdout == Stdout::Terminal {
            typed += ", standard output a terminal";
        }
        if self.command.is_empty() {
            typed += ", without a command";
        }
        if !self.far.is_empty() {
            let images: Vec<String> = self.far.iter().map(|image| format!("`{image}`")).collect();
            let _ = write!(typed, ", the registry has {}", images.join(", "));
        }
        typed
    }
}

/// What came of a row: of each program, with each registry.
struct Tried {
    docker_charon: Vec<Outcome>,
    charon: Vec<Outcome>,
}

/// Tries the rows, and holds what came of it against the section of the documentation.
pub(crate) fn assert_section(section: &str, rows: &[Row]) {
    let stages = [Software::Distribution3, Software::Distribution2].map(Stage::new);
    // What waits long begins first.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|index| !rows[*index].is_slow);
    let next = AtomicUsize::new(0);
    let tried = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    let row = &rows[*index];
                    let stages = &stages[..if row.is_tried_once { 1 } else { 2 }];
                    let run = |who| stages.iter().map(|stage| stage.run(row, who)).collect();
                    let [docker_charon, charon] = Who::BOTH.map(run);
                    tried.lock().unwrap().push((*index, Tried { docker_charon, charon }));
                }
            });
        }
    });
    let mut tried = tried.into_inner().unwrap();
    tried.sort_by_key(|(index, _)| *index);

    let mut wrong = Vec::new();
    let mut lines = vec![
        "| argument | tried | docker-charon 0.4.3 | charon | |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    let mut argument = "";
    for (row, (_, tried)) in rows.iter().zip(&tried) {
        let is_same = tried.docker_charon == tried.charon;
        if is_same == row.deviation.is_some() {
            let expected = if is_same { "differ" } else { "agree" };
            wrong.push(format!(
                "{} {}: the two should {expected}\n  docker-charon: {:?}\n  charon: {:?}",
                row.command,
                row.typed(),
                tried.docker_charon,
                tried.charon
            ));
        }
        let shown = if row.argument == argument { "" } else { row.argument };
        argument = row.argument;
        let why = row.deviation.map_or("same".to_owned(), |why| format!("+ {why}"));
        let charon = if is_same { "the same".to_owned() } else { cell(&tried.charon) };
        lines.push(format!(
            "| {shown} | {} | {} | {charon} | {why} |",
            row.typed(),
            cell(&tried.docker_charon)
        ));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    hold_against_the_file(section, &lines.join("\n"));
}

/// What a program did, with both registries or with each.
fn cell(outcomes: &[Outcome]) -> String {
    match outcomes {
        [one, other] if one.to_string() != other.to_string() => {
            format!("with distribution 3: {one}; with 2.8: {other}")
        }
        [one, ..] => one.to_string(),
        [] => String::new(),
    }
}

fn hold_against_the_file(section: &str, table: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/docker-charon.md");
    let is_update = std::env::var_os("UPDATE_DOCS").is_some();
    let file = File::open(&path).expect("docs/docker-charon.md is there");
    // The sections are proved by tests that run at the same time.
    file.lock().expect("it can be locked");
    let text = fs::read_to_string(&path).expect("it can be read");
    let begin = format!("<!-- {section}: written by tests/docker_charon -->\n");
    let end = "\n<!-- end -->";
    let (before, rest) =
        text.split_once(&begin).unwrap_or_else(|| panic!("the documentation has no {begin}"));
    let (found, after) = rest.split_once(end).expect("a section ends");
    if is_update && found != table {
        fs::write(&path, format!("{before}{begin}{table}{end}{after}")).expect("it can be written");
    } else {
        assert!(
            found == table,
            "docs/docker-charon.md does not say what the two do: run the tests with UPDATE_DOCS=1\n{}",
            differences(found, table)
        );
    }
}

fn differences(found: &str, expected: &str) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (found, expected) = (lines(found), lines(expected));
    let gone = found.iter().filter(|line| !expected.contains(line)).map(|line| format!("- {line}"));
    let new = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect::<Vec<_>>().join("\n")
}
