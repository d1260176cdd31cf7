//! Why something could not be brought into the registry.

use std::io;

use crate::payload::PayloadError;
use crate::reason::{Reason, Told};
use crate::registry::RegistryError;

/// Why a blob or a manifest is not in a repository, in one word and in a sentence.
pub(super) type Why = (Reason, String);

/// Why a registry's error happened: the payload's own error, if that is what broke the upload, or what was met where
/// the blob was to be copied from.
pub(super) fn tell(error: &RegistryError) -> Why {
    let payload = error.body_error().and_then(io::Error::get_ref);
    if let Some(payload) = payload.and_then(|error| error.downcast_ref::<PayloadError>()) {
        return (payload.reason(), payload.to_string());
    }
    if let Some(error) = reading(error) {
        return (error.reason(), error.to_string());
    }
    // The store of the payload may have told why.
    match error.body_error().filter(|error| Told::is_in(error)) {
        Some(told) => (Reason::from(told), format!("reading the payload: {told}")),
        None => (error.reason(), error.to_string()),
    }
}

/// What a registry said where a blob was to be copied from.
pub(super) fn reading(error: &RegistryError) -> Option<&RegistryError> {
    error.body_error()?.get_ref()?.downcast_ref()
}
