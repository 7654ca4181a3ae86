//! What `trace.rs` is where the feature `tracing` is off: nothing.

use std::future::Future;

use super::{Operation, Outcome};
use crate::driver::Received;
use crate::{Message, MessageId};

#[derive(Debug)]
pub(crate) struct Spans;

#[derive(Debug)]
pub(crate) struct Span;

#[derive(Debug)]
pub(crate) struct Receiving;

#[derive(Debug)]
pub(crate) struct Processing;

impl Spans {
    pub(super) fn new(_: &'static str, _: &str, _: Option<&str>) -> Self {
        Self
    }

    #[inline]
    pub(super) fn send(&self, _: Operation, _: Option<usize>) -> Span {
        Span
    }

    pub(super) fn create(&self, _: &Span, _: &mut Message, _: &impl Fn(&Message) -> usize) {}

    #[inline]
    pub(super) fn receive(&self) -> Receiving {
        Receiving
    }

    #[inline]
    pub(super) fn process(&self, _: &Receiving, _: &Received, _: u32) -> Processing {
        Processing
    }

    #[inline]
    pub(super) fn settle(&self, _: Operation, _: &Processing) -> Span {
        Span
    }

    pub(super) fn settle_many<'a>(&self, _: impl ExactSizeIterator<Item = &'a Processing>) -> Span {
        Span
    }

    pub(super) fn bury(&self, _: &Message) -> Span {
        Span
    }
}

impl Span {
    #[inline]
    pub(super) fn inject(&self, _: &mut Message, _: &impl Fn(&Message) -> usize) {}

    #[inline]
    pub(super) fn sent(&self, _: &MessageId) {}

    #[inline]
    pub(super) fn failed(&self, _: &'static str) {}

    pub(super) fn within(&self, event: impl FnOnce()) {
        event();
    }
}

impl Receiving {
    #[inline]
    pub(super) fn counted(&self, _: usize) {}
}

impl Processing {
    #[inline]
    pub(super) fn ended(&self, _: Outcome) {}

    #[inline]
    pub(crate) fn within(&self, event: impl FnOnce()) {
        event();
    }

    pub(crate) fn instrument<F: Future>(&self, future: F) -> F {
        future
    }
}
