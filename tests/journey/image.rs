//! Charon's own image, as `make image` made it and the node has it.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use crate::world::run;

#[test]
fn the_image_holds_the_program_and_the_roots_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let within = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/charon.tar");
    run("tar", &["-xf", image.to_str().unwrap(), "-C", folder.path().to_str().unwrap()], None);
    let read = |name: &str| -> Value { serde_json::from_reader(File::open(within(name)).unwrap()).unwrap() };
    let manifest = read("manifest.json")[0].take();

    let config = read(manifest["Config"].as_str().unwrap())["config"].take();
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/charon"]));

    let layers = manifest["Layers"].as_array().unwrap().iter().map(|layer| within(layer.as_str().unwrap()));
    let listed: String = layers.map(|layer| run("tar", &["-tvf", &layer], None) + "\n").collect();
    let is_folder = |line: &&str| line.starts_with('d');
    let mut files: Vec<_> = listed.lines().filter(|line| !line.is_empty() && !is_folder(line)).collect();
    files.sort_by_key(|line| line.rsplit(' ').next().map(str::to_owned));
    let names: Vec<_> =
        files.iter().map(|line| line.rsplit(' ').next().unwrap().trim_start_matches('/')).collect();
    assert_eq!(names, ["charon", "etc/ssl/certs/ca-certificates.crt"], "{listed}");
    // Neither of them is anyone's to change, or runs with more rights than it was given.
    assert!(files.iter().all(|line| line.starts_with("-r") && !line[..10].contains('s')), "{listed}");
}
