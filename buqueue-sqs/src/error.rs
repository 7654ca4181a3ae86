//! From the SDK's errors to buqueue's kinds.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;
use buqueue_core::{BuqueueError, ErrorKind};

/// What the service's error code means. The codes are those of the JSON protocol, of the older query protocol, and of
/// AWS's common errors.
pub(crate) fn classify(code: &str, words: &str) -> ErrorKind {
    // `AWS.SimpleQueueService.NonExistentQueue`, `com.amazonaws.sqs#QueueDoesNotExist`.
    let short = code.rsplit(['.', '#']).next().unwrap_or(code);
    match short {
        "QueueDoesNotExist" | "NonExistentQueue" => ErrorKind::NotFound,
        "RequestThrottled" | "Throttling" | "ThrottlingException" | "ThrottledException" | "KmsThrottled"
        | "TooManyRequestsException" | "RequestLimitExceeded" | "SlowDown" | "OverLimit"
        // A name is free again a minute after its queue was deleted.
        | "QueueDeletedRecently" => ErrorKind::Throttled,
        "AccessDenied" | "AccessDeniedException" | "KmsAccessDenied" | "InvalidClientTokenId"
        | "UnrecognizedClientException" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidSignatureException"
        | "IncompleteSignature" | "ExpiredToken" | "ExpiredTokenException" | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" | "AuthFailure" | "OptInRequired" | "InvalidSecurity" | "NotAuthorized"
        | "RequestExpired" => ErrorKind::AuthenticationFailed,
        "BatchRequestTooLong" => ErrorKind::PayloadTooLarge,
        "InvalidMessageContents" => ErrorKind::InvalidMessage,
        "ReceiptHandleIsInvalid" | "InvalidReceiptHandle" | "MessageNotInflight" => ErrorKind::LeaseExpired,
        "QueueNameExists" | "QueueAlreadyExists" | "InvalidAttributeName" | "InvalidAttributeValue" | "InvalidAddress" => {
            ErrorKind::InvalidConfig
        }
        "UnsupportedOperation" => ErrorKind::Unsupported,
        "InternalFailure" | "InternalError" | "ServiceUnavailable" | "InternalServerError" => ErrorKind::ConnectionLost,
        "InvalidParameterValue" | "InvalidParameterValueException" | "InvalidParameterCombination" => {
            parameter(&words.to_ascii_lowercase())
        }
        _ => ErrorKind::BackendSpecific { code: code.to_owned(), message: words.to_owned() },
    }
}

/// One code for many things; the words tell them apart.
fn parameter(words: &str) -> ErrorKind {
    if words.contains("receipt") || words.contains("not available for visibility timeout change") {
        ErrorKind::LeaseExpired
    } else if words.contains("must be shorter than")
        || words.contains("too long")
        || words.contains("maximum")
    {
        ErrorKind::PayloadTooLarge
    } else {
        ErrorKind::InvalidMessage
    }
}

/// `what` names the request.
pub(crate) fn from_sdk<E>(what: &str, error: SdkError<E, HttpResponse>) -> BuqueueError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (kind, fact) = match &error {
        SdkError::ServiceError(refused) => match refused.err().code() {
            Some(code) => {
                let words = refused.err().message().unwrap_or_default();
                let kind = classify(code, words);
                let fact = match &kind {
                    ErrorKind::BackendSpecific { .. } => what.to_owned(),
                    _ => format!("{what}: {code}: {words}"),
                };
                (kind, fact)
            }
            // Something before SQS has answered: a load balancer, a proxy.
            None => {
                let status = refused.raw().status().as_u16();
                (of_status(status), format!("{what}: the answer is HTTP {status}, and none of SQS"))
            }
        },
        SdkError::TimeoutError(_) => (ErrorKind::Timeout, format!("{what}: SQS did not answer in time")),
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) => match credentials(&error) {
            Some(true) => {
                (ErrorKind::AuthenticationFailed, format!("{what}: the credentials chain has none"))
            }
            Some(false) => (ErrorKind::ConnectionLost, format!("{what}: the credentials could not be had")),
            None if matches!(error, SdkError::DispatchFailure(_)) => {
                (ErrorKind::ConnectionLost, format!("{what}: the connection failed"))
            }
            None => (ErrorKind::InvalidConfig, format!("{what}: the request could not be made")),
        },
        // An answer that breaks off.
        _ => (ErrorKind::ConnectionLost, format!("{what}: the answer could not be read")),
    };
    let new = BuqueueError::new(kind, fact);
    // Without the answer itself, which may be full of messages.
    match error.into_source() {
        Ok(source) => new.with_source(source),
        Err(_) => new,
    }
}

fn of_status(status: u16) -> ErrorKind {
    match status {
        429 => ErrorKind::Throttled,
        401 | 403 => ErrorKind::AuthenticationFailed,
        500.. => ErrorKind::ConnectionLost,
        _ => ErrorKind::BackendSpecific { code: status.to_string(), message: "no answer of SQS".to_owned() },
    }
}

/// Whether there are no credentials (`Some(true)`), or only not at the moment.
fn credentials(error: &(dyn std::error::Error + 'static)) -> Option<bool> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            let lasting = matches!(
                error,
                CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)
            );
            return Some(lasting);
        }
        cause = error.source();
    }
    None
}

/// One entry of a batch that failed.
pub(crate) fn from_entry(what: &str, entry: &BatchResultErrorEntry) -> BuqueueError {
    let words = entry.message().unwrap_or_default();
    let kind = classify(entry.code(), words);
    let fact = match &kind {
        ErrorKind::BackendSpecific { .. } => what.to_owned(),
        _ => format!("{what}: {}: {words}", entry.code()),
    };
    BuqueueError::new(kind, fact)
}

/// The answer to a batch does not speak of an entry.
pub(crate) fn unanswered(what: &str) -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, format!("{what}: SQS did not answer for this message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_protocols_mean_the_same() {
        for (code, words, kind) in [
            ("com.amazonaws.sqs#QueueDoesNotExist", "", ErrorKind::NotFound),
            ("AWS.SimpleQueueService.NonExistentQueue", "", ErrorKind::NotFound),
            ("RequestThrottled", "", ErrorKind::Throttled),
            ("InvalidClientTokenId", "", ErrorKind::AuthenticationFailed),
            ("AccessDenied", "", ErrorKind::AuthenticationFailed),
            ("AWS.SimpleQueueService.BatchRequestTooLong", "", ErrorKind::PayloadTooLarge),
            ("ReceiptHandleIsInvalid", "", ErrorKind::LeaseExpired),
            ("AWS.SimpleQueueService.MessageNotInflight", "", ErrorKind::LeaseExpired),
            ("InvalidParameterValue", "The receipt handle has expired", ErrorKind::LeaseExpired),
            (
                "InvalidParameterValue",
                "One or more parameters are invalid. Reason: Message must be shorter than 262144 bytes.",
                ErrorKind::PayloadTooLarge,
            ),
            ("InvalidMessageContents", "", ErrorKind::InvalidMessage),
            ("ServiceUnavailable", "", ErrorKind::ConnectionLost),
        ] {
            assert_eq!(classify(code, words), kind, "{code}");
        }
        assert!(matches!(classify("New", "words"), ErrorKind::BackendSpecific { .. }));
    }
}
