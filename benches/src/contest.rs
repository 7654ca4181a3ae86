//! A table of contenders that run in turn, and the ratios between them.

use std::future::Future;
use std::pin::Pin;

use crate::{Sample, median, table};

type Run<'a> = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Sample> + Send + 'a>> + Send + Sync + 'a>;

/// Contenders for the same work.
pub struct Contest<'a> {
    title: String,
    contenders: Vec<(&'static str, Run<'a>)>,
}

impl<'a> Contest<'a> {
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), contenders: Vec::new() }
    }

    /// One more; the first is what the others are compared with in the table.
    #[must_use]
    pub fn with<F, Fut>(mut self, name: &'static str, run: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'a,
        Fut: Future<Output = Sample> + Send + 'a,
    {
        self.contenders.push((name, Box::new(move || Box::pin(run()))));
        self
    }

    /// Lets all of them run in every round, in rotating order after one round to warm up, and prints the table.
    pub async fn run(self, rounds: usize) -> Results {
        let count = self.contenders.len();
        let mut done = Vec::with_capacity(rounds);
        for round in 0..=rounds {
            let mut samples = vec![None; count];
            for turn in 0..count {
                let at = (turn + round) % count;
                samples[at] = Some(self.contenders[at].1().await);
            }
            if round > 0 {
                done.push(samples);
            }
        }
        let names: Vec<&'static str> = self.contenders.iter().map(|(name, _)| *name).collect();
        table(&format!("### {}, {rounds} rounds", self.title), &names, &done);
        println!();
        Results { names, rounds: done }
    }
}

/// What came out.
pub struct Results {
    names: Vec<&'static str>,
    rounds: Vec<Vec<Option<Sample>>>,
}

impl Results {
    /// The median of the rounds' ratios.
    fn ratio(&self, a: &str, b: &str, of: fn(&Sample) -> f64) -> f64 {
        let at = |wanted: &str| self.names.iter().position(|name| *name == wanted).expect("a contender");
        let (a, b) = (at(a), at(b));
        let ratios = self.rounds.iter().filter_map(|round| Some(of(&round[a]?) / of(&round[b]?)));
        median(ratios.collect())
    }

    /// How many times as fast `a` is as `b`.
    #[must_use]
    pub fn rate(&self, a: &str, b: &str) -> f64 {
        self.ratio(a, b, Sample::rate)
    }

    /// How many times the CPU of `b` it takes `a`.
    #[must_use]
    pub fn cpu(&self, a: &str, b: &str) -> f64 {
        self.ratio(a, b, Sample::cpu_ns)
    }
}
