//! From the SDK's errors to buqueue's kinds.

use aws_credential_types::provider::error::CredentialsError;
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
pub(crate) fn from_sdk<E, R>(what: &str, error: SdkError<E, R>) -> BuqueueError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    R: std::fmt::Debug + Send + Sync + 'static,
{
    let (kind, fact) = match &error {
        SdkError::ServiceError(refused) => {
            let (code, words) =
                (refused.err().code().unwrap_or("unknown"), refused.err().message().unwrap_or_default());
            let kind = classify(code, words);
            let fact = match &kind {
                ErrorKind::BackendSpecific { .. } => what.to_owned(),
                _ => format!("{what}: {code}: {words}"),
            };
            (kind, fact)
        }
        SdkError::TimeoutError(_) => (ErrorKind::Timeout, format!("{what}: SQS did not answer in time")),
        SdkError::DispatchFailure(failure) => {
            if is_about_credentials(&error) {
                let fact = format!("{what}: the credentials chain has none, or could not get them");
                (ErrorKind::AuthenticationFailed, fact)
            } else if failure.is_timeout() {
                (ErrorKind::ConnectionLost, format!("{what}: no connection in time"))
            } else {
                (ErrorKind::ConnectionLost, format!("{what}: the connection failed"))
            }
        }
        SdkError::ResponseError(_) => {
            let kind = ErrorKind::BackendSpecific {
                code: "response".to_owned(),
                message: "is none of SQS".to_owned(),
            };
            (kind, what.to_owned())
        }
        _ if is_about_credentials(&error) => {
            (ErrorKind::AuthenticationFailed, format!("{what}: the credentials chain has none"))
        }
        _ => (ErrorKind::InvalidConfig, format!("{what}: the request could not be made")),
    };
    BuqueueError::new(kind, fact).with_source(error)
}

fn is_about_credentials(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<CredentialsError>() {
            return true;
        }
        cause = error.source();
    }
    false
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
