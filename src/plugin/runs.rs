//! All runs as last seen, and the table of them. Pure.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use indicatif::DecimalBytes;
use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::{Condition, PayloadBuild, PayloadImport, Progress, Status, condition};
use crate::progress::Stage;

/// The speed is that of so many updates; there is one every 15 seconds.
const UPDATES: usize = 5;
/// Without an update for so long nothing moves.
const STILL: Duration = Duration::from_mins(1);

/// A kind of resource that has runs.
pub(super) trait Kind: kube::Resource<DynamicType = ()> {
    /// As kubectl's users abbreviate it.
    const SHORT: &'static str;

    fn status(&self) -> Option<&Status>;
}

impl Kind for PayloadBuild {
    const SHORT: &'static str = "pbuild";

    fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }
}

impl Kind for PayloadImport {
    const SHORT: &'static str = "pimport";

    fn status(&self) -> Option<&Status> {
        self.status.as_ref()
    }
}

/// Namespace, kind and name.
type Key = (String, &'static str, String);

/// All runs, as last seen.
#[derive(Clone, Debug, Default)]
pub struct Runs(BTreeMap<Key, Seen>);

/// A resource.
#[derive(Clone, Debug, Default)]
struct Seen {
    created: Option<Timestamp>,
    status: Status,
    /// When the worker said how many bytes it had moved, the oldest first.
    updates: VecDeque<(Timestamp, u64)>,
    /// When the last of them was seen, by this machine's clock.
    heard: Timestamp,
}

fn key<K: Kind>(resource: &K) -> Key {
    (resource.namespace().unwrap_or_default(), K::SHORT, resource.name_any())
}

impl Runs {
    /// Takes what a resource says now.
    pub(super) fn take<K: Kind>(&mut self, resource: &K, now: Timestamp) {
        let seen = self.0.entry(key(resource)).or_default();
        let status = resource.status().cloned().unwrap_or_default();
        seen.created = resource.creation_timestamp().map(|time| time.0);
        if seen.run() != run(&status) {
            seen.updates.clear();
        }
        seen.status = status;
        if let Some(update) = seen.status.progress.as_ref().and_then(update) {
            seen.update(update, now);
        }
    }

    pub(super) fn remove<K: Kind>(&mut self, resource: &K) {
        self.0.remove(&key(resource));
    }

    /// Keeps, of a kind, only what is in `names`.
    pub(super) fn keep<K: Kind>(&mut self, names: &HashSet<(String, String)>) {
        self.0.retain(|(namespace, kind, name), _| {
            *kind != K::SHORT || names.contains(&(namespace.clone(), name.clone()))
        });
    }

    /// The table at `now`.
    #[must_use]
    pub fn table(&self, now: Timestamp, with_namespaces: bool) -> Table {
        let headings = ["NAMESPACE", "NAME", "READY", "STATUS", "PROGRESS", "SPEED", "LEFT", "AGE"];
        let mut rows = vec![headings.map(str::to_owned)];
        rows.extend(self.0.iter().map(|((namespace, kind, name), seen)| {
            let [ready, status, progress, speed, left, age] = seen.cells(now);
            [namespace.clone(), format!("{kind}/{name}"), ready, status, progress, speed, left, age]
        }));
        let first = usize::from(!with_namespaces);
        Table { rows: rows.into_iter().map(|row| row[first..].to_vec()).collect() }
    }
}

fn run(status: &Status) -> Option<(&str, u32)> {
    status.run.as_ref().map(|run| (run.id.as_str(), run.attempt))
}

fn update(progress: &Progress) -> Option<(Timestamp, u64)> {
    Some((progress.update_time.0, progress.bytes_done?))
}

impl Seen {
    fn run(&self) -> Option<(&str, u32)> {
        run(&self.status)
    }

    fn update(&mut self, (time, bytes): (Timestamp, u64), now: Timestamp) {
        match self.updates.back() {
            Some((last, _)) if *last >= time => return,
            // Another worker began anew.
            Some((_, before)) if *before > bytes => self.updates.clear(),
            _ => {}
        }
        self.updates.push_back((time, bytes));
        self.heard = now;
        while self.updates.len() > UPDATES {
            self.updates.pop_front();
        }
    }

    fn cells(&self, now: Timestamp) -> [String; 6] {
        let none = || "-".to_owned();
        let ready = self.condition(condition::READY);
        let progress = self.status.progress.as_ref();
        let speed = self.speed(now);
        let left =
            speed.filter(|speed| *speed > 0).and_then(|speed| Some(self.bytes_left()?.div_ceil(speed)));
        let age = self.created.map(|created| now.duration_since(created).as_secs().max(0).unsigned_abs());
        let status = match (ready, progress) {
            (Some(ready), Some(progress)) if ready.status == "Unknown" => format!("{:?}", progress.stage),
            (Some(ready), _) => ready.reason.clone(),
            (None, _) => none(),
        };
        let percent = progress.and_then(|progress| progress.percent);
        [
            ready.map_or_else(none, |ready| ready.status.clone()),
            status,
            percent.map_or_else(none, |percent| format!("{percent}%")),
            speed.map_or_else(none, |speed| format!("{}/s", DecimalBytes(speed))),
            left.map_or_else(none, duration),
            age.map_or_else(none, duration),
        ]
    }

    fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    fn bytes_left(&self) -> Option<u64> {
        let progress = self.status.progress.as_ref()?;
        progress.bytes_total?.checked_sub(progress.bytes_done?)
    }

    /// Bytes a second, while bytes move: between the last updates, and while there is one, since the run began.
    fn speed(&self, now: Timestamp) -> Option<u64> {
        let moves =
            self.status.progress.as_ref().is_some_and(|progress| progress.stage == Stage::Transferring);
        if !moves || self.condition(condition::RECONCILING).is_none() {
            return None;
        }
        if now.duration_since(self.heard).unsigned_abs() > STILL {
            return Some(0);
        }
        let (last, bytes) = self.updates.back()?;
        let began = || Some((self.status.run.as_ref()?.start_time.as_ref()?.0, 0));
        let (first, before) =
            self.updates.front().copied().filter(|(time, _)| time != last).or_else(began)?;
        let seconds = last.duration_since(first).as_secs();
        bytes.saturating_sub(before).checked_div(seconds.try_into().ok()?)
    }
}

/// Seconds as people say them, in one or two units.
fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let largest = UNITS.iter().position(|(length, _)| seconds >= *length).unwrap_or(UNITS.len() - 1);
    let (length, unit) = UNITS[largest];
    let first = format!("{}{unit}", seconds / length);
    match UNITS.get(largest + 1) {
        // Nobody counts the minutes of ten hours.
        Some((next, unit)) if seconds / length < 10 && seconds % length >= *next => {
            format!("{first}{}{unit}", seconds % length / next)
        }
        _ => first,
    }
}

/// Rows of cells, the headings first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// How many resources there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len().saturating_sub(1)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }

    /// The lines as they fit a screen: cut at its right, and at its bottom with a word of how many are below.
    #[must_use]
    pub fn screen(&self, columns: usize, lines: usize) -> Vec<String> {
        let mut all = self.lines();
        if all.len() > lines && lines > 0 {
            let below = all.len() - (lines - 1);
            all.truncate(lines - 1);
            all.push(format!("… and {below} more"));
        }
        all.iter().map(|line| line.chars().take(columns).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::UNIX_EPOCH;

    fn at(seconds: u64) -> Timestamp {
        START + Duration::from_secs(seconds)
    }

    fn build(name: &str, status: &str) -> PayloadBuild {
        let text = format!(
            "{{apiVersion: charon.dev/v1alpha1, kind: PayloadBuild, metadata: {{name: {name}, namespace: ship, \
             creationTimestamp: '1970-01-01T00:00:00Z'}}, spec: {{output: {{}}}}, status: {status}}}"
        );
        serde_saphyr::from_str(&text).unwrap()
    }

    /// A build in the middle of its transfer.
    fn transferring(attempt: u32, time: u64, done: u64) -> PayloadBuild {
        build(
            "app",
            &format!(
                "{{conditions: [{}, {}], run: {{id: r, attempt: {attempt}, startTime: '1970-01-01T00:00:00Z'}}, progress: \
                 {{stage: Transferring, percent: {}, bytesDone: {done}, bytesTotal: 10000000000, updateTime: '{}'}}}}",
                condition("Ready", "Unknown", "Progressing"),
                condition("Reconciling", "True", "Progressing"),
                done / 100_000_000,
                at(time),
            ),
        )
    }

    fn condition(type_: &str, status: &str, reason: &str) -> String {
        format!(
            "{{type: {type_}, status: '{status}', reason: {reason}, message: '', lastTransitionTime: '1970-01-01T00:00:00Z'}}"
        )
    }

    fn row(runs: &Runs, now: u64) -> String {
        runs.table(at(now), false).lines()[1].split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_table_tells_of_each_run_how_far_it_is_how_fast_and_how_long_still() {
        let mut runs = Runs::default();
        runs.take(&transferring(1, 100, 2_000_000_000), at(100));
        runs.take(&transferring(1, 115, 2_600_000_000), at(115));
        runs.take(&build("fresh", "{}"), at(115));
        let done = format!("{{conditions: [{}]}}", condition("Ready", "True", "Succeeded"));
        runs.take(&build("done", &done), at(115));
        let import = "{apiVersion: charon.dev/v1alpha1, kind: PayloadImport, metadata: {name: app, namespace: ashore, \
            creationTimestamp: '1970-01-01T00:00:00Z'}, spec: {source: {}, registry: {host: a}}, status: {conditions: [";
        let waits = condition("Ready", "False", "SourceNotFound");
        let import: PayloadImport = serde_saphyr::from_str(&format!("{import}{waits}]}}}}")).unwrap();
        runs.take(&import, at(115));
        insta::assert_snapshot!(runs.table(at(115), true).lines().join("\n"));
        insta::assert_snapshot!(runs.table(at(115), false).screen(30, 3).join("\n"));
    }

    #[test]
    fn the_speed_is_that_of_the_last_updates_and_at_first_that_since_the_beginning() {
        let mut runs = Runs::default();
        runs.take(&transferring(1, 100, 1_000_000_000), at(100));
        assert_eq!(row(&runs, 100), "pbuild/app Unknown Transferring 10% 10.00 MB/s 15m 1m40s");
        // The same update is seen again when something else of the status changes.
        runs.take(&transferring(1, 100, 1_000_000_000), at(102));
        assert_eq!(row(&runs, 102), "pbuild/app Unknown Transferring 10% 10.00 MB/s 15m 1m42s");
        for step in 1..=20 {
            runs.take(&transferring(1, 100 + step, 1_000_000_000 + step * 100_000_000), at(100 + step));
        }
        assert_eq!(row(&runs, 120), "pbuild/app Unknown Transferring 30% 100.00 MB/s 1m10s 2m");
    }

    #[test]
    fn a_run_that_stands_still_has_no_speed_and_no_end() {
        let mut runs = Runs::default();
        runs.take(&transferring(1, 100, 1_000_000_000), at(100));
        assert_eq!(row(&runs, 161), "pbuild/app Unknown Transferring 10% 0 B/s - 2m41s");
    }

    #[test]
    fn another_attempt_and_a_worker_that_began_anew_are_measured_from_their_own_beginning() {
        let mut runs = Runs::default();
        for (attempt, time, done) in [(1, 10, 5_000), (2, 20, 6_000), (2, 30, 1_000), (2, 40, 2_000)] {
            runs.take(&transferring(attempt, time, done), at(time));
        }
        assert_eq!(runs.0.values().next().unwrap().updates, [(at(30), 1_000), (at(40), 2_000)]);
    }

    #[test]
    fn what_is_gone_leaves_the_table() {
        let mut runs = Runs::default();
        for name in ["a", "b", "c"] {
            runs.take(&build(name, "{}"), at(0));
        }
        runs.remove(&build("a", "{}"));
        runs.keep::<PayloadImport>(&HashSet::new());
        assert_eq!(runs.table(at(0), true).len(), 2);
        runs.keep::<PayloadBuild>(&[("ship".to_owned(), "c".to_owned())].into());
        assert!(row(&runs, 0).starts_with("pbuild/c"), "{}", row(&runs, 0));
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (61, "1m1s"),
            (900, "15m"),
            (5_400, "1h30m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
