//! The NATS JetStream backend of buqueue.
