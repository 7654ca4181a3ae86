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

/// `what` was asked for.
pub(crate) fn from_client(what: &str, error: KafkaError) -> BuqueueError {
    let (kind, words) = match &error {
        // Files that cannot be read, and what does not go together.
        KafkaError::ClientCreation(words) => (ErrorKind::InvalidConfig, words.clone()),
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
