//! Errors, and what they must not show: promises 35 and 36.

use buqueue_core::driver::Backend;
use buqueue_core::{BuqueueError, ErrorKind, Message};
use chrono::Utc;

use crate::support::{SOON, ack, receive, send, within};
use crate::{Ctx, Harness, Outcome};

const CANARY: &str = "canary-8c1f";

/// Errors say where they happened.
pub async fn name_backend_and_operation<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let bad = || Message::new("m").with_header("buqueue-x", "v");
    let send = producer.send(bad()).await.unwrap_err();
    let send_at = producer.send_at(bad(), Utc::now()).await.unwrap_err();
    let send_batch = producer.send_batch(vec![bad()]).await.unwrap_err();
    within(SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    let receive = consumer.receive().await.unwrap_err();
    for (error, operation) in
        [(send, "send"), (send_at, "send_at"), (send_batch, "send_batch"), (receive, "receive")]
    {
        assert_eq!((error.backend(), error.operation()), (H::Backend::NAME, operation));
        let shown = error.to_string();
        assert!(shown.starts_with(H::Backend::NAME) && shown.contains(operation), "{shown}");
    }
    Ok(())
}

/// The same fault is the same kind everywhere.
pub async fn kinds_are_the_same_everywhere<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let kind = |result: Result<_, BuqueueError>| result.map(drop).unwrap_err().kind;
    let reserved = Message::new("m").with_header("buqueue-x", "v");
    assert_eq!(kind(producer.send(reserved).await), ErrorKind::InvalidMessage);
    assert_eq!(consumer.receive_batch(0).await.unwrap_err().kind, ErrorKind::InvalidConfig);
    send(&producer, "no json").await;
    let delivery = receive(&mut consumer).await;
    assert_eq!(delivery.payload_json::<u32>().unwrap_err().kind, ErrorKind::Serialization);
    assert_eq!(delivery.dead_letter("x").await.unwrap_err().kind, ErrorKind::Unsupported);
    ack(receive(&mut consumer).await).await;
    within(SOON, "shutdown", consumer.shutdown_handle().shutdown()).await;
    assert_eq!(consumer.try_receive().await.unwrap_err().kind, ErrorKind::ShuttingDown);
    Ok(())
}

/// No error and no `Debug` shows a payload or the value of a header.
pub async fn show_no_payload<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let (producer, mut consumer) = cx.pair().await;
    let mut shown = vec![format!("{producer:?}"), format!("{consumer:?}")];
    let secret = || Message::new(CANARY).with_header("x", CANARY);
    shown.push(format!("{:?}", secret()));
    let mut errors = vec![
        producer.send(secret().with_header("buqueue-x", CANARY)).await.unwrap_err(),
        producer.send_batch(vec![secret(), secret().with_header("", CANARY)]).await.unwrap_err(),
    ];
    if let Some(limit) = cx.capabilities().limits().payload_bytes.filter(|limit| *limit <= 16 << 20) {
        let large = CANARY.repeat(limit / CANARY.len() + 1);
        errors.push(producer.send(Message::new(large)).await.unwrap_err());
    }
    send(&producer, secret()).await;
    for _ in 0..2 {
        let delivery = receive(&mut consumer).await;
        shown.push(format!("{delivery:?}"));
        errors.push(delivery.payload_json::<u32>().unwrap_err());
        ack(delivery).await;
    }
    shown.extend([format!("{producer:?}"), format!("{consumer:?}")]);
    for error in errors {
        let mut source: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = source {
            shown.push(format!("{error} {error:?}"));
            source = error.source();
        }
    }
    for shown in shown {
        assert!(!shown.contains(CANARY), "{shown}");
    }
    Ok(())
}

/// Errors cross threads, keep their source and stay small.
pub async fn are_handy<H: Harness>(cx: &Ctx<H>) -> Outcome {
    fn handy<T: std::error::Error + Send + Sync + 'static>(_: &T) {}
    let (producer, _consumer) = cx.pair().await;
    let error = producer.send(Message::new("m").with_header("", "v")).await.unwrap_err();
    handy(&error);
    assert!(size_of::<BuqueueError>() < 128);
    let boxed: Box<dyn std::error::Error + Send + Sync> = error.into();
    assert!(boxed.downcast_ref::<BuqueueError>().is_some());
    Ok(())
}
