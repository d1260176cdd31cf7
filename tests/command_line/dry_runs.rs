//! What would be done, told without doing it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::image::{Image, Layer, Types, digest};
use crate::program::{Ended, Program, charon};
use crate::registry::{Registry, Software};

with_each_registry!(
    a_build_that_is_only_planned_tells_the_exact_size_and_writes_nothing,
    a_push_that_is_only_planned_tells_what_would_move_and_asks_for_no_upload,
);

/// A source with a base, an image on top of it, and one that has nothing to do with them.
struct Source {
    registry: Registry,
    base: Image,
    top: Image,
    folder: tempfile::TempDir,
}

impl Source {
    fn new(software: Software) -> Self {
        let registry = Registry::start(software);
        let shared = Layer::new("base", 3000);
        let base = Image::new(Types::Docker, std::slice::from_ref(&shared));
        let top = Image::new(Types::Docker, &[shared, Layer::new("top", 1000)]);
        base.push(&registry, "base:1");
        top.push(&registry, "top:1");
        Image::new(Types::Oci, &[Layer::new("other", 1000)]).push(&registry, "other:1");
        Self { registry, base, top, folder: tempfile::tempdir().unwrap() }
    }

    fn make(&self, arguments: &[&str]) -> Program {
        charon(["make-payload", "-q", "-i", "-r", self.registry.host()]).arguments(arguments)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> usize {
        fs::read_dir(self.folder.path()).unwrap().count()
    }
}

/// Pushes a manifest that refers to an image, and lists it as whoever pushes to a registry that lists nothing itself.
pub(crate) fn refer(registry: &Registry, repository: &str, image: &Image) -> String {
    let config = &image.blobs[0];
    let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(config), "size": config.len() });
    let described = |media_type: &str, digest: &str, size: usize| json!({ "mediaType": media_type, "digest": digest, "size": size });
    let media_type = Types::Oci.manifest();
    let referrer = json!({
        "schemaVersion": 2, "mediaType": media_type, "artifactType": "application/spdx+json", "config": config, "layers": [],
        "subject": described(media_type, &image.digest, image.manifest.len()),
    });
    let referrer = referrer.to_string();
    let digest = digest(referrer.as_bytes());
    registry.push_manifest(repository, &digest, media_type, referrer.as_bytes());
    let listed = [described(media_type, &digest, referrer.len())];
    let index =
        json!({ "schemaVersion": 2, "mediaType": Types::Oci.index(), "manifests": listed }).to_string();
    registry.push_manifest(repository, &image.digest.replace(':', "-"), Types::Oci.index(), index.as_bytes());
    digest
}

/// The value of a line of a plan.
pub(crate) fn line<'a>(plan: &'a str, name: &str) -> &'a str {
    let found = plan.lines().find_map(|line| line.strip_prefix(name));
    found.unwrap_or_else(|| panic!("no {name} in {plan}")).trim()
}

/// The bytes that a line of a plan tells.
pub(crate) fn bytes(plan: &str, name: &str) -> u64 {
    let line = line(plan, name);
    let (_, bytes) = line.rsplit_once('(').unwrap();
    bytes.split(' ').next().unwrap().parse().unwrap()
}

fn a_build_that_is_only_planned_tells_the_exact_size_and_writes_nothing(software: Software) {
    let source = Source::new(software);
    refer(&source.registry, "top", &source.top);
    let path = source.path("out.zip");
    let images = ["top:1,other:1", "-a", "base:1", "--dry-run"];
    let planned = source.make(&images).arguments(["-f"]).arguments([&path]).run().succeeded();
    let plan = planned.text();
    assert_eq!((planned.stderr.as_str(), source.files()), ("", 0));
    // The same where the payload itself would go to standard output.
    let streamed = source.make(&images).run().succeeded().text();
    assert_eq!(line(&streamed, "size"), line(&plan, "size"));
    assert!(!streamed.contains("room"), "{streamed}");

    let reads = |registry: &Registry| {
        let read = |request: &&String| request.starts_with("GET ") && request.contains("/manifests/");
        registry.requests().iter().filter(read).count()
    };
    let before = reads(&source.registry);
    source.make(&images[..3]).arguments(["-f"]).arguments([&path]).run().succeeded();
    let read = reads(&source.registry) - before;
    assert_eq!(line(&plan, "manifests read"), format!("{read} of {}", source.registry.host()));
    assert_eq!(bytes(&plan, "size"), fs::metadata(&path).unwrap().len());
    let inspected = charon(["inspect".as_ref(), path.as_os_str()]).run().succeeded().text();
    assert_eq!(line(&plan, "payload digest"), line(&inspected, "payload digest"));
    let layer = source.base.blobs[1].len() as u64;
    assert_eq!(bytes(&plan, "left out"), layer);
    assert_eq!(bytes(&plan, "to fetch"), bytes(&plan, "carries"));
    let blobs = source.top.blobs.len() + 2 - 1;
    assert!(line(&plan, "carries").starts_with(&format!("2 images, {blobs} blobs, ")), "{plan}");
    assert!(bytes(&plan, "room") > bytes(&plan, "size"));
}

fn push(target: &Registry, file: &Path, options: &[&str]) -> Ended {
    let push = charon(["push-payload", "-q", "-i", "-r", target.host(), "-f"]).arguments([file]);
    push.arguments(options).run()
}

fn a_push_that_is_only_planned_tells_what_would_move_and_asks_for_no_upload(software: Software) {
    let source = Source::new(software);
    let path = source.path("out.zip");
    source.make(&["top:1,other:1", "-a", "base:1", "-f"]).arguments([&path]).run().succeeded();
    let target = Registry::start(software);
    let nothing_written = || target.requests().iter().all(|request| !request.starts_with('P'));

    let missing = push(&target, &path, &["--dry-run"]).ended_with(1);
    let real = push(&target, &path, &["--strict"]).ended_with(1);
    let why = missing.stderr.strip_prefix("error: ").unwrap();
    assert_eq!(real.stderr, format!("error: nothing was pushed: {why}"));
    assert!(why.contains(&digest(&source.base.blobs[1])), "{why}");
    let told: Vec<_> = missing.text().lines().rev().take(3).map(str::to_owned).collect();
    assert_eq!(told[2].split_whitespace().next(), Some("IMAGE"));
    assert!(told[1].starts_with("top:1") && told[1].ends_with("MissingBase"), "{told:?}");
    assert!(told[0].starts_with("other:1") && told[0].ends_with("it is pushed"), "{told:?}");
    assert!(nothing_written() && target.is_empty());

    source.base.push(&target, "base:1");
    let before = target.requests().len();
    let plan = push(&target, &path, &["--dry-run", "--prefix", "m"]).ended_with(1).text();
    assert!(plan.contains("m/other:1"), "{plan}");
    let plan = push(&target, &path, &["--dry-run"]).succeeded().text();
    // Through a pipe the same.
    let piped = charon(["push-payload", "-q", "-i", "-r", target.host(), "--dry-run"]);
    assert_eq!(piped.fed(fs::read(&path).unwrap()).run().succeeded().text(), plan);
    let asked = target.requests().split_off(before);
    assert!(!asked.iter().any(|request| request.starts_with('P')), "{asked:#?}");

    let pushed =
        charon(["push-payload", "-i", "-r", target.host(), "-f"]).arguments([&path]).run().succeeded();
    let count = |what: &str| pushed.stderr.lines().filter(|line| line.starts_with(what)).count();
    let blobs = count("Pushing ");
    assert!(line(&plan, "to push").starts_with(&format!("{blobs} blobs, ")), "{plan}\n{}", pushed.stderr);
    assert_eq!(line(&plan, "to mount"), format!("{} blob", count("Mounted ") + count("Copying ")));
    let plan = push(&target, &path, &["--dry-run"]).succeeded().text();
    assert_eq!(bytes(&plan, "to push"), 0);
    assert_eq!(plan.matches("nothing, it is there").count(), 2, "{plan}");
}

#[test]
fn an_image_that_cannot_be_had_fails_the_plan_unless_it_may_be_missing() {
    let source = Source::new(Software::Distribution3);
    let images = ["top:1,gone:1", "--dry-run"];
    let failed = source.make(&images).run().ended_with(1);
    let real = source.make(&images[..1]).run().ended_with(1);
    assert_eq!((failed.stderr, failed.stdout), (real.stderr, vec![]));
    let plan = source.make(&images).arguments(["--allow-missing"]).run().succeeded().text();
    assert!(plan.ends_with("NOT TO BE HAD  REASON\ngone:1         ImageNotFound\n"), "{plan}");
}

#[test]
fn a_payload_that_has_no_room_fails_the_plan_with_both_numbers() {
    // Somebody says that a layer is larger than any disk.
    let source = Source::new(Software::Distribution3);
    let (media_type, manifest) = source.registry.manifest("top", "1").unwrap();
    let size = format!("\"size\":{}", source.top.blobs[2].len());
    let text = String::from_utf8(manifest).unwrap().replace(' ', "");
    assert_eq!(text.matches(&size).count(), 1, "{text}");
    let huge = text.replace(&size, "\"size\":4000000000000000");
    source.registry.push_manifest("top", "huge", &media_type, huge.as_bytes());
    let path = source.path("out.zip");
    let planned = source.make(&["top:huge", "--dry-run", "-f"]).arguments([&path]).run().ended_with(1);
    let (plan, room) = (planned.text(), bytes(&planned.text(), "room"));
    let (folder, size) = (source.folder.path().display(), bytes(&plan, "size"));
    let told = format!(
        "error: {folder} has no room for the payload: it has {size} bytes, and what lies beside it up to "
    );
    assert!(planned.stderr.starts_with(&told), "{}", planned.stderr);
    assert!(room < size && source.files() == 0);
    // And so does the payload itself, before the first byte.
    let before = source.registry.requests().len();
    let real = source.make(&["top:huge", "-f"]).arguments([&path]).run().ended_with(1);
    assert!(real.stderr.starts_with(&told), "{}", real.stderr);
    let asked = source.registry.requests().split_off(before);
    assert!(!asked.iter().any(|request| request.contains("/blobs/")), "{asked:#?}");
}
