use tokio::sync::mpsc;
#[tokio::main(flavor="current_thread")]
async fn main(){ tokio::spawn(async move {
  let (ping, mut pinged) = mpsc::channel::<Vec<u8>>(16);
  let (pong, mut ponged) = mpsc::channel::<Vec<u8>>(16);
  tokio::spawn(async move { loop { let Some(m) = pinged.recv().await else {return}; pong.send(m).await.unwrap(); }});
  for _ in 0..1_000_000 { ping.send(vec![0;100]).await.unwrap(); ponged.recv().await.unwrap(); }
 }).await.unwrap(); }
