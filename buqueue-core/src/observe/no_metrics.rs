//! What `metrics.rs` is where the feature `metrics` is off: nothing.

use chrono::{DateTime, Utc};

use super::{Operation, Outcome};
use crate::QueueStats;
use crate::driver::Activity;

#[derive(Debug)]
pub(crate) struct Meter;

/// When something began: not asked.
#[derive(Debug)]
pub(crate) struct Started;

impl Started {
    #[inline]
    pub(crate) fn now() -> Self {
        Self
    }
}

impl Meter {
    pub(super) fn new(_: &'static str, _: &str, _: Option<&str>) -> Self {
        Self
    }

    #[inline]
    pub(super) fn start(&self) -> Started {
        Started
    }

    #[inline]
    pub(super) fn sent(&self, _: usize, _: Option<&'static str>) {}

    #[inline]
    pub(super) fn operation(&self, _: Operation, _: &Started, _: Option<&'static str>) {}

    #[inline]
    pub(super) fn consumed(&self, _: usize) {}

    #[inline]
    pub(super) fn in_flight(&self, _: usize, _: bool) {}

    #[inline]
    pub(super) fn delivered(&self, _: Option<DateTime<Utc>>, _: u32) {}

    #[inline]
    pub(super) fn processed(&self, _: &Started, _: &Started, _: Outcome) {}

    pub(super) fn abandoned(&self) {}

    pub(super) fn dead_lettered(&self) {}

    pub(super) fn reconnected(&self) {}

    pub(super) fn depth(&self, _: &QueueStats) {}

    pub(super) fn dead_letter_depth(&self, _: &QueueStats) {}
}

pub(super) fn activity(_: &'static str, _: &str, _: Activity<'_>) {}
