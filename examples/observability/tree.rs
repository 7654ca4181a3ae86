//! A trace as a tree in the terminal.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{SpanId, SpanKind, Status, TraceId};
use opentelemetry_sdk::trace::SpanData;

use crate::books::Claim;

/// The trace in which an order was placed by itself.
pub(crate) fn trace_of(spans: &[SpanData], order: u64) -> Option<TraceId> {
    let is_root =
        |span: &&SpanData| span.name == "place order" && attribute(span, "order") == Some(order.to_string());
    spans.iter().find(is_root).map(|span| span.span_context.trace_id())
}

/// One line a span: its name, when it began after the first one, how long it took, and what is to be said of it.
pub(crate) fn draw(spans: &[SpanData], trace: TraceId) -> String {
    let tree = Tree::new(spans, trace);
    let mut lines = Vec::new();
    for root in tree.roots() {
        tree.collect(root, "", "", &mut lines);
    }
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let start = tree.spans.first().map_or(SystemTime::UNIX_EPOCH, |span| span.start_time);
    lines.iter().map(|(name, span)| format!("{name:width$}{}\n", tree.told(span, start))).collect()
}

/// The spans of one trace, in the order in which they began.
struct Tree<'a> {
    spans: Vec<&'a SpanData>,
    /// Names by id, of all traces: links lead there.
    names: HashMap<(TraceId, SpanId), &'a str>,
}

impl<'a> Tree<'a> {
    fn new(all: &'a [SpanData], trace: TraceId) -> Self {
        let place = |span: &SpanData| (span.span_context.trace_id(), span.span_context.span_id());
        let names = all.iter().map(|span| (place(span), &*span.name)).collect();
        let mut spans: Vec<_> = all.iter().filter(|span| span.span_context.trace_id() == trace).collect();
        spans.sort_by_key(|span| span.start_time);
        Self { spans, names }
    }

    /// Those whose parent is not here.
    fn roots(&self) -> impl Iterator<Item = &'a SpanData> {
        let is_here = |id: SpanId| self.spans.iter().any(|span| span.span_context.span_id() == id);
        self.spans.iter().copied().filter(move |span| !is_here(span.parent_span_id))
    }

    fn children(&self, parent: &SpanData) -> Vec<&'a SpanData> {
        let id = parent.span_context.span_id();
        self.spans.iter().copied().filter(|span| span.parent_span_id == id).collect()
    }

    /// The span with its branch before it, and then what is below it.
    fn collect(
        &self,
        span: &'a SpanData,
        branch: &str,
        below: &str,
        lines: &mut Vec<(String, &'a SpanData)>,
    ) {
        lines.push((format!("  {branch}{}", span.name), span));
        let children = self.children(span);
        for (at, child) in children.iter().enumerate() {
            let (sign, line) =
                if at + 1 == children.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.collect(child, &format!("{below}{sign}"), &format!("{below}{line}"), lines);
        }
    }

    fn told(&self, span: &SpanData, start: SystemTime) -> String {
        let at = milliseconds(span.start_time.duration_since(start).unwrap_or_default());
        let took = milliseconds(span.end_time.duration_since(span.start_time).unwrap_or_default());
        let mut notes = Vec::new();
        if let Some(attempt) = attribute(span, "buqueue.delivery_count") {
            notes.push(format!("attempt {attempt}"));
        }
        if let Status::Error { description } = &span.status {
            let error = attribute(span, "error.type").unwrap_or_else(|| description.to_string());
            notes.push(format!("\x1b[31merror: {error}\x1b[0m"));
        }
        // Of the link's span the name, where it was kept: it is in a trace of its own.
        notes.extend(span.links.iter().map(|link| {
            let place = (link.span_context.trace_id(), link.span_context.span_id());
            format!("linked to {}", self.names.get(&place).copied().unwrap_or("a span that was not kept"))
        }));
        format!("  +{at:>8}  {took:>8} ms  {}", notes.join(", ")).trim_end().to_owned()
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == name).map(|pair| pair.value.to_string())
}

/// What is promised of traces, as far as the orders that are shown go.
pub(crate) fn claims(spans: &[SpanData]) -> Vec<Claim> {
    let tree = |order| trace_of(spans, order).map(|trace| Tree::new(spans, trace));
    let mut claims = Vec::new();
    let mut claim = |text: &str, holds: bool| claims.push(Claim { text: text.to_owned(), holds });

    let way = ["place order", "send", "process", "fulfil order", "bill", "send", "process", "print invoice"];
    claim(
        "order 1 is one trace: placed, sent, fulfilled, its invoice sent and printed",
        tree(1).is_some_and(|tree| tree.roots().any(|root| tree.has_way(root, &way))),
    );
    let ends = |order| tree(order).map_or_else(Vec::new, |tree| tree.ends("place order"));
    claim("order 2 failed and was tried again, in the same trace", ends(2) == ["nack", ""]);
    claim(
        "order 3 failed and failed and died, in the same trace",
        ends(3) == ["nack", "nack", "dead_letter"],
    );
    claims
}

impl Tree<'_> {
    /// Whether a way leads down from here over spans of these names; the queue's own have that of the queue behind.
    fn has_way(&self, from: &SpanData, way: &[&str]) -> bool {
        let Some((name, rest)) = way.split_first() else { return true };
        let is_this = from.name == *name
            || (from.span_kind != SpanKind::Internal && from.name.split(' ').next() == Some(name));
        is_this && (rest.is_empty() || self.children(from).into_iter().any(|child| self.has_way(child, rest)))
    }

    /// How the attempts at the message ended that was sent below this root: empty where they went well.
    fn ends(&self, root: &str) -> Vec<String> {
        let below = |span: &SpanData| self.children(span);
        let Some(root) = self.roots().find(|span| span.name == root) else { return Vec::new() };
        let sends = below(root).into_iter();
        let attempts = sends.flat_map(below).filter(|span| span.span_kind == SpanKind::Consumer);
        attempts.map(|span| attribute(span, "error.type").unwrap_or_default()).collect()
    }
}
