//! Groups: promise 17.

use std::time::Duration;

use crate::support::{
    SOON, ack, look, nack, nothing_for, numbered, receive, send, send_all, sorted, take, text,
};
use crate::{Ctx, Harness, Outcome};

/// Each group gets each message.
pub async fn each_gets_everything<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut groups = Vec::new();
    for name in ["billing", "shipping", "audit"] {
        groups.push(cx.consumer(&setup.group(name)).await);
    }
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 30)).await;
    for group in &mut groups {
        assert_eq!(sorted(take(group, 30).await), sorted(numbered("m", 30)));
    }
    for group in &mut groups {
        nothing_for(Duration::from_millis(100), group).await;
    }
    Ok(())
}

/// Members of one group share; another group is not concerned.
pub async fn members_share<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut other = cx.consumer(&setup.group("other")).await;
    let mut members = [cx.consumer(&setup.group("team")).await, cx.consumer(&setup.group("team")).await];
    let producer = cx.producer(&setup).await;
    send_all(&producer, numbered("m", 40)).await;
    let mut seen = Vec::new();
    crate::support::eventually(4 * SOON, "40 messages for the team", async || {
        for member in &mut members {
            if let Some(delivery) = look(member).await {
                seen.push(text(&delivery));
                ack(delivery).await;
            }
        }
        seen.len() >= 40
    })
    .await;
    assert_eq!(sorted(seen), sorted(numbered("m", 40)));
    assert_eq!(sorted(take(&mut other, 40).await), sorted(numbered("m", 40)));
    Ok(())
}

/// A failure in one group is that group's alone, and so is its count.
pub async fn failures_stay_in_their_group<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut one = cx.consumer(&setup.group("one")).await;
    let mut two = cx.consumer(&setup.group("two")).await;
    let producer = cx.producer(&setup).await;
    send(&producer, "m").await;
    nack(receive(&mut one).await).await;
    let again = receive(&mut one).await;
    assert_eq!(again.delivery_count(), 2);
    let first = receive(&mut two).await;
    assert_eq!(first.delivery_count(), 1);
    ack(first).await;
    ack(again).await;
    nothing_for(Duration::from_millis(200), &mut two).await;
    Ok(())
}

/// A group that is behind keeps its messages, however far the other has got.
pub async fn one_behind_loses_nothing<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut fast = cx.consumer(&setup.group("fast")).await;
    let mut slow = cx.consumer(&setup.group("slow")).await;
    let producer = cx.producer(&setup).await;
    for round in 0..5 {
        send_all(&producer, numbered(&format!("m-{round}"), 200)).await;
        take(&mut fast, 200).await;
    }
    let all: Vec<String> = (0..5).flat_map(|round| numbered(&format!("m-{round}"), 200)).collect();
    assert_eq!(sorted(take(&mut slow, 1000).await), sorted(all));
    Ok(())
}

/// A schedule is due in every group.
pub async fn each_gets_schedules<H: Harness>(cx: &Ctx<H>) -> Outcome {
    let setup = cx.setup();
    let mut one = cx.consumer(&setup.group("one")).await;
    let mut two = cx.consumer(&setup.group("two")).await;
    let producer = cx.producer(&setup).await;
    let at = chrono::Utc::now() + chrono::TimeDelta::milliseconds(400);
    producer.send_at(buqueue_core::Message::new("m"), at).await.unwrap();
    for group in [&mut one, &mut two] {
        let delivery = receive(group).await;
        assert!(chrono::Utc::now() >= at);
        ack(delivery).await;
        nothing_for(Duration::from_millis(100), group).await;
    }
    Ok(())
}
