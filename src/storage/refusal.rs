//! What a store answers, in words and reasons.

use std::error::Error as _;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};

use super::StorageError;
use crate::object_location::ObjectLocation;
use crate::reason::Reason;

/// A store's own words are cut here.
const MESSAGE_LIMIT: usize = 300;

/// What came back, as far as it can be told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: Option<u16>,
    /// `NoSuchBucket`, `AccessDenied`.
    code: Option<String>,
    message: Option<String>,
}

/// Says what was being done to which object, what came back, and what to do.
pub(super) fn told(doing: &'static str, location: &ObjectLocation, error: &Error) -> StorageError {
    let answer = answer(error);
    let code = answer.code.as_deref().unwrap_or_default();
    let (reason, hint) = match (answer.status, code) {
        (_, "NoSuchBucket" | "ContainerNotFound") => {
            (Reason::StorageNotFound, format!("; is there a bucket {:?} at this store?", location.bucket))
        }
        (Some(301 | 307), _) | (_, "AuthorizationHeaderMalformed" | "PermanentRedirect") => {
            (Reason::InvalidSpec, "; name the bucket's region, or the store's endpoint".to_owned())
        }
        (_, "QuotaExceeded" | "XMinioStorageFull") | (Some(507), _) => {
            (Reason::StorageFull, "; make room in the store".to_owned())
        }
        (Some(401 | 403), _) | (_, "ExpiredToken" | "InvalidToken") => (
            Reason::StorageAccessDenied,
            "; check the credentials, and what they may do in this bucket".to_owned(),
        ),
        (Some(404), _) => (Reason::StorageNotFound, "; check bucket and key".to_owned()),
        _ if is_untrusted(error) => (
            Reason::InvalidSpec,
            "; give the certificate authority that signed it: certSecretRef, or SSL_CERT_FILE".to_owned(),
        ),
        _ if is_passing(error) => (Reason::StorageBusy, String::new()),
        (Some(_), _) => (Reason::WorkerFailed, String::new()),
        // Nothing was asked yet: what it was told makes no sense to the library.
        (None, _) => (Reason::InvalidSpec, "; check endpoint, region and credentials".to_owned()),
    };
    StorageError::Object {
        doing,
        location: location.to_string(),
        problem: answer.in_words(error),
        hint,
        reason,
    }
}

/// A store that cannot be what was said of it.
pub(super) fn unusable(location: &ObjectLocation, problem: String) -> StorageError {
    StorageError::Object {
        doing: "reach",
        location: location.to_string(),
        problem,
        hint: String::new(),
        reason: Reason::InvalidSpec,
    }
}

/// Whether the same request may be answered otherwise a little later.
pub(super) fn is_passing(error: &Error) -> bool {
    match answer(error).status {
        // Nor will it be implemented a little later.
        Some(501) => false,
        // S3 begins to answer some requests before it knows how they end.
        Some(200..300 | 408 | 429 | 500..) => true,
        Some(_) => false,
        None => {
            !is_untrusted(error) && http(error).is_some_and(|error| error.kind() != HttpErrorKind::Decode)
        }
    }
}

/// Whether the object, or the upload, is not there.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && !is_without_bucket(error)
}

/// Whether the store knows the upload, and not all of its parts.
pub(super) fn is_without_parts(error: &Error) -> bool {
    matches!(answer(error).code.as_deref(), Some("InvalidPart" | "InvalidPartOrder" | "InvalidBlockList"))
}

fn is_without_bucket(error: &Error) -> bool {
    matches!(answer(error).code.as_deref(), Some("NoSuchBucket" | "ContainerNotFound"))
}

/// Whether the store does not do what a condition asks for.
pub(super) fn is_without_conditions(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || answer(error).status == Some(501)
        || answer(error).code.as_deref() == Some("NotImplemented")
}

fn is_untrusted(error: &Error) -> bool {
    chain(error).any(|error| error.to_string().contains("invalid peer certificate"))
}

fn http(error: &Error) -> Option<&HttpError> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn chain<'a>(error: &'a Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |error: &&'a (dyn std::error::Error + 'static)| (**error).source())
}

/// The library tells a status and what came with it in words only.
fn answer(error: &Error) -> Answer {
    chain(error)
        .map(|error| read(&error.to_string()))
        .find(|answer| answer.status.is_some())
        .unwrap_or_default()
}

fn read(text: &str) -> Answer {
    let (status, body) = if let Some((_, rest)) = text.split_once("Server returned non-2xx status code: ") {
        (rest.get(..3).and_then(|digits| digits.parse().ok()), rest)
    } else if let Some((_, rest)) = text.split_once("Server returned error response: ") {
        (Some(200), rest)
    } else if text.contains("Received redirect without LOCATION") {
        (Some(301), "")
    } else {
        return Answer::default();
    };
    // Nothing else of the body is told: it may hold what was signed.
    let element = |name: &str| {
        let (_, rest) = body.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once(&format!("</{name}>"))?;
        Some(text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MESSAGE_LIMIT).collect())
    };
    Answer { status, code: element("Code"), message: element("Message") }
}

impl Answer {
    fn in_words(&self, error: &Error) -> String {
        match (self.status, &self.code, &self.message) {
            (Some(status), Some(code), Some(message)) => {
                format!("the store answered {status} {code}: {}", message.trim_end_matches('.'))
            }
            (Some(status), Some(code), None) => format!("the store answered {status} {code}"),
            (Some(status), None, _) => format!("the store answered {status}"),
            (None, ..) => {
                let innermost = chain(error).last().map_or_else(|| error.to_string(), ToString::to_string);
                let what = if http(error).is_some() { "the exchange with the store broke off: " } else { "" };
                format!("{what}{}", without_queries(&innermost))
            }
        }
    }
}

/// The query of a URL may hold a signature.
fn without_queries(text: &str) -> String {
    let words = text.split_whitespace();
    let words =
        words.map(|word| if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Error {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Words(String);
        Error::Generic { store: "S3", source: Box::new(Words(text.to_owned())) }
    }

    fn location() -> ObjectLocation {
        "s3://transfer/app.zip".parse().unwrap()
    }

    #[test]
    fn each_answer_has_its_reason_and_its_way_out_and_tells_nothing_that_was_signed() {
        let body = |code: &str| {
            format!(
                "<Error><Code>{code}</Code><Message>No.\n More.</Message><StringToSign>secret</StringToSign></Error>"
            )
        };
        for (status, code, reason, words) in [
            (404, "NoSuchBucket", Reason::StorageNotFound, "is there a bucket \"transfer\""),
            (403, "SignatureDoesNotMatch", Reason::StorageAccessDenied, "check the credentials"),
            (400, "AuthorizationHeaderMalformed", Reason::InvalidSpec, "name the bucket's region"),
            (400, "ExpiredToken", Reason::StorageAccessDenied, "check the credentials"),
            (507, "XMinioStorageFull", Reason::StorageFull, "make room"),
            (503, "SlowDown", Reason::StorageBusy, "503 SlowDown: No. More"),
        ] {
            let error = refused(&format!("Server returned non-2xx status code: {status} X: {}", body(code)));
            let told = told("read", &location(), &error);
            assert_eq!(told.reason(), reason, "{told}");
            let text = told.to_string();
            assert!(text.starts_with("cannot read s3://transfer/app.zip: the store answered"), "{text}");
            assert!(text.contains(words) && !text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        let status = |status: u16| refused(&format!("Server returned non-2xx status code: {status} X: "));
        for passing in [408, 429, 500, 503] {
            assert!(is_passing(&status(passing)), "{passing}");
        }
        for lasting in [400, 403, 404, 412, 501] {
            assert!(!is_passing(&status(lasting)), "{lasting}");
        }
        assert!(is_passing(&refused("Server returned error response: <Code>InternalError</Code>")));
        assert!(!is_passing(&refused("no credentials")));
    }

    #[test]
    fn a_signed_url_is_told_without_its_signature() {
        assert_eq!(without_queries("for url (https://a/b?sig=1) no"), "for url (https://a/b no");
    }
}
