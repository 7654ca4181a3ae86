use buqueue_core::Message; use buqueue_memory::*;
#[tokio::main(flavor="current_thread")]
async fn main(){ let mode=std::env::args().nth(1).unwrap(); tokio::spawn(async move {
 if mode=="pp" {
  let (ping, mut pinged) = MemoryBackend::builder(MemoryConfig::default()).build_pair().await.unwrap();
  let (pong, mut ponged) = MemoryBackend::builder(MemoryConfig::default()).build_pair().await.unwrap();
  tokio::spawn(async move { loop { let d = pinged.receive().await.unwrap(); let m=d.message().clone(); d.ack().await.unwrap(); pong.send(m).await.unwrap(); }});
  for _ in 0..1_000_000 { ping.send(Message::new(vec![0;100])).await.unwrap(); ponged.receive().await.unwrap().ack().await.unwrap(); }
 } else {
  let (p, mut c) = MemoryBackend::builder(MemoryConfig{capacity:1024,..Default::default()}).build_pair().await.unwrap();
  let t=tokio::spawn(async move { for _ in 0..10_000_000 { c.receive().await.unwrap().ack().await.unwrap(); }});
  for _ in 0..10_000_000 { p.send(Message::new(vec![0;100])).await.unwrap(); }
  t.await.unwrap();
 }}).await.unwrap(); }
