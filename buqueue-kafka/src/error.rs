//! From the client's errors to buqueue's kinds.

use buqueue_core::{BuqueueError, ErrorKind};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// What a code of the client or the broker means.
pub(crate) fn classify(code: Code) -> ErrorKind {
    match code {
        Code::BrokerTransportFailure
        | Code::WaitingForCoordinator
        | Code::InProgress
        | Code::PreviousInProgress
        | Code::Retry
        | Code::Fail
        | Code::KafkaStorageError
        | Code::FencedLeaderEpoch
        | Code::UnknownLeaderEpoch
        | Code::OffsetNotAvailable
        | Code::PreferredLeaderNotAvailable
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::ReplicaNotAvailable
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::PurgeQueue
        | Code::PurgeInflight => ErrorKind::ConnectionLost,
        Code::OperationTimedOut | Code::MessageTimedOut | Code::RequestTimedOut | Code::TimedOutQueue => {
            ErrorKind::Timeout
        }
        Code::QueueFull | Code::ThrottlingQuotaExceeded | Code::PolicyViolation => ErrorKind::Throttled,
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => ErrorKind::AuthenticationFailed,
        Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnknownTopicId
        | Code::UnknownPartition
        | Code::UnknownGroup => ErrorKind::NotFound,
        Code::MessageSizeTooLarge | Code::InvalidMessageSize => ErrorKind::PayloadTooLarge,
        Code::InvalidMessage | Code::InvalidRecord => ErrorKind::InvalidMessage,
        Code::SSL
        | Code::InvalidArgument
        | Code::InvalidTopic
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidSessionTimeout
        | Code::InconsistentGroupProtocol
        | Code::UnsupportedSASLMechanism => ErrorKind::InvalidConfig,
        Code::UnsupportedFeature | Code::UnsupportedVersion => ErrorKind::Unsupported,
        Code::IllegalGeneration
        | Code::UnknownMemberId
        | Code::PollExceeded
        | Code::RebalanceInProgress
        | Code::FencedInstanceId
        | Code::State
        | Code::AssignmentLost => ErrorKind::LeaseExpired,
        other => ErrorKind::BackendSpecific { code: format!("{other:?}"), message: other.to_string() },
    }
}

/// What the client calls the files of TLS, in whose words it tells that one is of no use, and our own fields.
const FILES: [(&str, &str); 4] = [
    ("ssl.ca.location", "security.tls.ca_file"),
    ("ssl.certificate.location", CLIENT_FILES),
    ("ssl.key.location", CLIENT_FILES),
    ("Private key check", CLIENT_FILES),
];
const CLIENT_FILES: &str = "security.tls.certificate_and_key_files";

/// Whether a broker has ended TLS because of this client's certificate, or of its lack, and what is said about it then. In
/// TLS 1.3 it does so only when the client takes the connection for made, who tells of one that broke.
pub(crate) fn of_certificate(reason: &str) -> Option<String> {
    let (_, alert) = reason.split_once("SSL alert number ")?;
    let alert = alert.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    // None, bad, of another kind, revoked, expired, unknown; of an unknown authority, denied; a wrong signature; required.
    matches!(alert.parse(), Ok(41..=46 | 48 | 49 | 51 | 116))
        .then(|| format!("{CLIENT_FILES}: the broker asks for them, or refuses what it was shown: {reason}"))
}

/// `what` was asked for.
pub(crate) fn from_client(what: &str, error: KafkaError) -> BuqueueError {
    let mut what = what;
    let (kind, words) = match &error {
        // Files that cannot be read, and what does not go together.
        KafkaError::ClientCreation(words) => {
            if let Some((_, field)) = FILES.iter().find(|(native, _)| words.contains(native)) {
                what = field;
            }
            (ErrorKind::InvalidConfig, words.clone())
        }
        KafkaError::ClientConfig(_, words, key, _) => {
            (ErrorKind::InvalidConfig, format!("{key}: {}", words.trim()))
        }
        KafkaError::AdminOp(code) => (classify(*code), code.to_string()),
        other => match other.rdkafka_error_code() {
            Some(code) => (classify(code), code.to_string()),
            None => (
                ErrorKind::BackendSpecific { code: "client".to_owned(), message: other.to_string() },
                String::new(),
            ),
        },
    };
    let fact = if words.is_empty() { what.to_owned() } else { format!("{what}: {words}") };
    BuqueueError::new(kind, fact).with_source(error)
}

pub(crate) fn lost(what: &str) -> BuqueueError {
    BuqueueError::new(ErrorKind::ConnectionLost, format!("{what}: the client has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_about_certificates_are_told_from_others() {
        let words =
            |number: u8| format!("error:0A00045C:SSL routines::alert: SSL alert number {number} (after 2ms)");
        for number in [42, 48, 116] {
            assert!(of_certificate(&words(number)).is_some_and(|fact| fact.starts_with(CLIENT_FILES)));
        }
        // A lack of common ciphers, an error of the broker's; none.
        for number in [40, 80] {
            assert_eq!(of_certificate(&words(number)), None);
        }
        assert_eq!(of_certificate("Disconnected: connection reset by peer"), None);
    }

    #[test]
    fn a_file_of_no_use_is_told_by_its_field() {
        for (native, field) in FILES {
            let error = from_client("producer", KafkaError::ClientCreation(format!("{native} failed: x")));
            assert!(error.message().starts_with(&format!("{field}: {native} failed")), "{error}");
        }
    }
}
