//! The RabbitMQ backend of buqueue.
