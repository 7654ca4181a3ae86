//! What an application needs beside its backend: `use buqueue::prelude::*;`.

pub use buqueue_core::{
    BuqueueError, Delivery, DeliveryStream, DlqConfig, ErrorKind, Message, MessageId, QueueConsumer,
    QueueProducer, ShutdownHandle,
};
