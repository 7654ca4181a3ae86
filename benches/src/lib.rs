//! What the benchmarks share: fair rounds, ratios, an allocation counter.

pub mod contest;
pub mod work;

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cpu_time::ProcessTime;

/// Counts allocations and live bytes; install it with `#[global_allocator]`.
pub struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system allocator and only counts. The benchmark package is the one place that may.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNT.load(Ordering::Relaxed) != 0 {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if COUNT.load(Ordering::Relaxed) != 0 {
            LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Switches counting on or off; off it costs one load.
pub fn count_allocations(on: bool) {
    COUNT.store(usize::from(on), Ordering::SeqCst);
}

/// Allocations counted so far.
#[must_use]
pub fn allocations() -> usize {
    ALLOCATIONS.load(Ordering::SeqCst)
}

/// Bytes allocated less bytes freed while counting. Meaningful as a difference.
#[must_use]
pub fn live_bytes() -> isize {
    LIVE.load(Ordering::SeqCst).cast_signed()
}

/// What one run of one contender took.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub wall: Duration,
    pub cpu: Duration,
    pub messages: usize,
}

impl Sample {
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.messages as f64 / self.wall.as_secs_f64()
    }

    #[must_use]
    pub fn cpu_ns(&self) -> f64 {
        self.cpu.as_nanos() as f64 / self.messages as f64
    }
}

/// Times a run.
pub async fn measure(messages: usize, run: impl Future<Output = ()>) -> Sample {
    let cpu = ProcessTime::now();
    let wall = Instant::now();
    run.await;
    Sample { wall: wall.elapsed(), cpu: cpu.elapsed(), messages }
}

/// Checks that what was delivered is what was sent, each message once: the sums of the numbers and of their squares
/// agree.
#[derive(Debug, Default)]
pub struct Tally {
    pub count: AtomicUsize,
    sum: AtomicU64,
    squares: AtomicU64,
}

impl Tally {
    /// Notes one delivery. Each consumer has a tally of its own, so nothing is shared between cores.
    pub fn note(&self, number: u64) {
        self.sum.store(self.sum.load(Ordering::Relaxed).wrapping_add(number), Ordering::Relaxed);
        let square = number.wrapping_mul(number);
        self.squares.store(self.squares.load(Ordering::Relaxed).wrapping_add(square), Ordering::Relaxed);
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Waits until all consumers together have noted `sent` messages, and checks them; tells how many were missing
    /// when `patience` ran out.
    pub async fn settle(tallies: &[Arc<Self>], sent: usize, patience: Duration) -> usize {
        let until = Instant::now() + patience;
        let count = || tallies.iter().map(|tally| tally.count.load(Ordering::Acquire)).sum::<usize>();
        while count() < sent {
            if Instant::now() > until {
                return sent - count();
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let sum = |of: fn(&Self) -> &AtomicU64| {
            tallies.iter().fold(0u64, |sum, tally| sum.wrapping_add(of(tally).load(Ordering::Acquire)))
        };
        let expect =
            |of: fn(u64) -> u64| (0..sent as u64).fold(0u64, |sum, number| sum.wrapping_add(of(number)));
        assert_eq!(count(), sent, "more delivered than sent");
        assert_eq!(sum(|tally| &tally.sum), expect(|number| number), "delivered is not what was sent");
        assert_eq!(sum(|tally| &tally.squares), expect(|number| number.wrapping_mul(number)), "duplicates");
        0
    }
}

/// The middle value.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value below which `permille` of 1000 lie.
#[must_use]
pub fn percentile(mut values: Vec<u64>, permille: usize) -> u64 {
    values.sort_unstable();
    values.get((values.len() * permille / 1000).min(values.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Prints whether a goal was met.
pub fn at_least(what: &str, value: f64, goal: f64) {
    verdict(what, value, "≥", goal, value >= goal);
}

/// Prints whether a goal was met that is an upper bound.
pub fn at_most(what: &str, value: f64, goal: f64) {
    verdict(what, value, "≤", goal, value <= goal);
}

fn verdict(what: &str, value: f64, relation: &str, goal: f64, met: bool) {
    println!("{what}: {value:.2} (goal {relation} {goal}) {}", if met { "ok" } else { "MISSED" });
}

fn per_second(rate: f64) -> String {
    if rate < 1e5 { format!("{:.1} k", rate / 1e3) } else { format!("{:.3} M", rate / 1e6) }
}

/// Ratios of each contender to the first, round by round, and their spread.
pub fn table(title: &str, names: &[&str], rounds: &[Vec<Option<Sample>>]) {
    println!("\n{title}");
    println!("| contender | msg/s (median) | ratio to {} | min..max | CPU ns/msg |", names[0]);
    println!("|---|---|---|---|---|");
    for (index, name) in names.iter().enumerate() {
        let samples: Vec<Sample> = rounds.iter().filter_map(|round| round[index]).collect();
        if samples.is_empty() {
            println!("| {name} | – | – | did not finish | – |");
            continue;
        }
        let ratios: Vec<f64> =
            rounds.iter().filter_map(|round| Some(round[index]?.rate() / round[0]?.rate())).collect();
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(0.0, f64::max);
        println!(
            "| {name} | {} | {:.2} | {low:.2}..{high:.2} | {:.0} |",
            per_second(median(samples.iter().map(Sample::rate).collect())),
            median(ratios),
            median(samples.iter().map(Sample::cpu_ns).collect()),
        );
    }
}
