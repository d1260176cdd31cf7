//! Charon on clusters that have no way out, or that somebody else has made.

use crate::release::{CHART, Release, VERSION};
use crate::world::{FAR, World, far_registry, run, variable};

/// The image that `make image` builds, but for a label: a node that has pulled an image knows the one with the same id no
/// longer as loaded by hand, and would pull that, too. It goes into the far registry, and into a file of the folder.
fn image_of_its_own(folder: &str) -> (String, String) {
    far_registry();
    let (image, file) = (format!("{FAR}/charon:{VERSION}"), format!("{folder}/charon.tar"));
    run("crane", &["push", "--insecure", "target/charon.tar", &image], None);
    run("crane", &["mutate", "--insecure", "--label", "carried=yes", "--tag", &image, &image], None);
    run("crane", &["pull", "--insecure", &image, &file], None);
    (image, file)
}

fn crane_digest(image: &str) -> String {
    run("crane", &["digest", "--insecure", image], None)
}

#[test]
fn what_the_bootstrap_makes_is_pushed_by_its_program_and_installed_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (_, image) = image_of_its_own(&at("."));
    let said = run("charts/bootstrap", &[&image, &variable("CHARON_BIN"), &at("carried")], None);
    for name in ["charon", "charts/charon"] {
        assert!(said.contains(&format!("\n{name}:{VERSION} ")), "{said}");
    }

    // On the far side there is what was carried, and no name is known but the registry's.
    let (program, payload) = (at("carried/charon"), at(&format!("carried/charon-{VERSION}.zip")));
    run(&program, &["verify", &payload], None);
    run(&program, &["push-payload", "--registry", FAR, "--insecure", "--file", &payload], None);
    let chart = format!("oci://{FAR}/charts/charon");
    run(
        "helm",
        &["pull", &chart, "--version", VERSION, "--plain-http", "--untar", "-d", &at("pulled")],
        None,
    );
    let rendered = |chart: &str| run("helm", &["template", "charon", chart, "-n", "charon"], None);
    assert_eq!(rendered(&at("pulled/charon")), rendered(CHART));

    let registry = format!("global.imageRegistry={FAR}");
    let options = ["--version", VERSION, "--plain-http", "--set", &registry];
    let release = Release::install(&chart, &options);
    release.until_ready();
    let image = run(
        "kubectl",
        &["-n", "charon", "get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}"],
        None,
    );
    assert!(image.contains(&format!("{FAR}/charon:{VERSION}")), "{image}");
}

#[test]
fn the_demo_runs_on_a_cluster_that_is_there_and_leaves_it_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (image, _) = image_of_its_own(folder.path().to_str().unwrap());
    // A claim that says nothing gets the newest default class: one that has a volume for it.
    let class = World::alone("newest");
    class.late_claim("unused");
    class.kubectl(&["delete", "pvc", "unused"]);
    let name = "late-newest";
    let default = "storageclass.kubernetes.io/is-default-class=true";
    run("kubectl", &["annotate", "storageclass", name, default], None);

    let far = format!("http://{FAR}");
    let variables = ["CLUSTER=current", &format!("IMAGE=http://{image}"), &format!("REGISTRY={far}")];
    let said = run("make", &[&["--no-print-directory", "demo"], variables.as_slice()].concat(), None);
    run("kubectl", &["delete", "storageclass", name], None);
    assert!(said.contains(&format!("charon {VERSION}")), "{said}");
    assert_eq!(crane_digest(&format!("{FAR}/charon-demo/charon:{VERSION}")), crane_digest(&image));
    let left = run("kubectl", &["get", "namespaces,crd", "-o", "name"], None);
    assert!(!left.contains("charon-demo") && !left.contains("charon.dev"), "{left}");
}
