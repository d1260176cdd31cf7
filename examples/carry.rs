//! Carries an image from one registry to another in a file, as `charon make-payload` and `charon push-payload` do:
//! `cargo run --example carry -- SOURCE TARGET IMAGE`

use std::path::PathBuf;

use charon::registry::Credentials;
use charon::{Error, MakePayload, PushPayload, RegistryOptions, make_payload, push_payload};

/// Carries `image` from the registry `source` to `target`, both without TLS, which know us by the same `credentials` or
/// ask for none; gives the names that arrived.
pub(crate) async fn carry(
    source: &str,
    target: &str,
    image: &str,
    credentials: Option<&Credentials>,
    file: PathBuf,
) -> Result<Vec<String>, Error> {
    let registry = |host: &str| RegistryOptions {
        registry: Some(host.to_owned()),
        insecure: true,
        // Or `docker_config: DockerConfig::load_default()?`, which has them for every registry.
        credentials: credentials.cloned(),
        ..RegistryOptions::default()
    };
    let wanted = MakePayload {
        images: vec![image.to_owned()],
        file: file.clone(),
        registry: registry(source),
        ..MakePayload::default()
    };
    // Anybody may look meanwhile how far it is, and `wanted.cancel.cancel()` ends it.
    let progress = wanted.progress.clone();
    let made = make_payload(&wanted).await?;
    assert_eq!(progress.snapshot().bytes_done, progress.snapshot().bytes_total);

    let push = PushPayload {
        file,
        // What is pushed is what was made: the digest commits to every byte.
        expected_digest: Some(made.digest),
        registry: registry(target),
        ..PushPayload::default()
    };
    let pushed = push_payload(&push).await?;
    // An image that cannot be whole does not stop the others: look at each.
    let whole = pushed.images.iter().filter(|image| image.fate.failure().is_none());
    Ok(whole.map(|image| image.target.clone()).collect())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, target, image] = arguments.as_slice() else {
        return Err("usage: carry SOURCE TARGET IMAGE".into());
    };
    let [username, password] =
        ["REGISTRY_USERNAME", "REGISTRY_PASSWORD"].map(|name| std::env::var(name).ok());
    let credentials = username.zip(password).map(|(name, password)| Credentials::password(name, password));
    let file = std::env::temp_dir().join("carried.zip");
    let arrived = carry(source, target, image, credentials.as_ref(), file).await?;
    tracing::info!("{} arrived in {target}", arrived.join(", "));
    Ok(())
}
