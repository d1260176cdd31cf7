//! The bench of both, and of crane and oras, as `make bench` runs it, with hardly anything to carry.

use std::fs;
use std::path::Path;

use crate::program::tool;

#[test]
fn the_bench_measures_all_four_programs_and_draws_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let bench = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/bench.py");
    // Its registries have ports of their own, where nobody else is.
    let alone = ["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"];
    let measured =
        tool("unshare", alone).arguments([&bench]).arguments(["--charon", env!("CARGO_BIN_EXE_charon")]);
    let tiny = "--rounds 1 --images 1 --megabytes 1 --many 8 --large 0 --svg bench.svg";
    let measured = measured.arguments(tiny.split(' ')).in_folder(folder.path());
    let told = measured.variable("TMPDIR", folder.path()).run().succeeded().text();

    let (figures, goals) = told.split_once("| figure | measured | goal | met |\n").unwrap();
    let rows: Vec<&str> =
        goals.lines().filter_map(|row| row.strip_prefix("| ")?.split(" | ").next()).collect();
    let begins = [
        "---",
        "build, wall, of ",
        "build, wall, of docker-charon",
        "build, cpu, of ",
        "import, wall, of ",
        "import again, wall, of docker-charon",
        "import again, requests",
        "build over a link, wall, of ",
        "import over a link, wall, of ",
        "time to plan 8 images, of that for 2",
        "plan of 8 images, MiB",
    ];
    assert_eq!(rows.len(), begins.len(), "{told}");
    for (row, begin) in rows.iter().zip(begins) {
        assert!(row.starts_with(begin), "{row} is not {begin}");
    }
    let drawn = folder.path().join("bench.svg");
    let read =
        "import sys, xml.etree.ElementTree as tree; print(*tree.parse(sys.argv[1]).getroot().itertext())";
    let texts = tool("python3", ["-c", read]).arguments([&drawn]).run().succeeded().text();
    for program in
        ["charon make-payload", "docker-charon make-payload", "crane pull", "oras cp --to-oci-layout"]
    {
        assert!(figures.contains(&format!("| {program}")) && texts.contains(program), "{program}: {told}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "it leaves nothing but what it drew");
}
