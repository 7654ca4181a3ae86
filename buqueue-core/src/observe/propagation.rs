//! Trace context in headers: W3C Trace Context and W3C Baggage, written and read here, so that they pass whether or not
//! the application has installed a propagator; and whatever its propagator adds (B3, Jaeger, X-Ray).
//!
//! Sources: <https://www.w3.org/TR/trace-context/>, <https://www.w3.org/TR/baggage/>.

use std::fmt::Write as _;
use std::str::FromStr as _;

use opentelemetry::baggage::{Baggage, BaggageExt as _, BaggageMetadata, KeyValueMetadata};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use opentelemetry::{Context, global};

use crate::{Headers, Message, RESERVED_PREFIX};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
const BAGGAGE: &str = "baggage";

/// No propagator is known to write so many. With the time that a message is due, these are the headers that drivers count on.
const FIELDS_MAX: usize = 15;

/// What the specification asks to be passed on at least; nothing longer is written.
const BAGGAGE_MAX_BYTES: usize = 8192;

/// Adds the context to the message, as far as there is room. A message that carries one already keeps it: it was created
/// elsewhere (a dead letter, a redriven message, one that is passed on).
pub(super) fn inject(cx: &Context, message: &mut Message, room: &impl Fn(&Message) -> usize) {
    if find(message.headers(), TRACEPARENT).is_some() {
        return;
    }
    let mut fields = Fields::default();
    let span = cx.span().span_context().clone();
    if span.is_valid() {
        fields.0.push((TRACEPARENT.to_owned(), traceparent(&span)));
        let state = span.trace_state().header();
        if !state.is_empty() {
            fields.0.push((TRACESTATE.to_owned(), state));
        }
    }
    let baggage = write_baggage(cx.baggage());
    if !baggage.is_empty() {
        fields.0.push((BAGGAGE.to_owned(), baggage));
    }
    global::get_text_map_propagator(|propagator| propagator.inject_context(cx, &mut fields));
    if fields.0.is_empty() {
        return;
    }
    let mut room = room(message);
    for (name, value) in fields.0 {
        if find(message.headers(), &name).is_none() && name.len() + value.len() <= room {
            room -= name.len() + value.len();
            message.set_header(&name, &value);
        }
    }
}

/// Whether there may be anything to extract, cheaply: most headers are not of that kind.
pub(super) fn is_carried(headers: &Headers) -> bool {
    if headers.is_empty() {
        return false;
    }
    let is_ours = |name: &str| [TRACEPARENT, BAGGAGE].iter().any(|ours| name.eq_ignore_ascii_case(ours));
    headers.iter().any(|(name, _)| is_ours(name))
        || global::get_text_map_propagator(|propagator| {
            propagator.fields().any(|field| find(headers, field).is_some())
        })
}

/// Programs in other languages spell names their own way.
fn find<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let same = |(other, value): (&str, &'a str)| other.eq_ignore_ascii_case(name).then_some(value);
    headers.get(name).or_else(|| headers.iter().find_map(same))
}

/// The context that the message carries: its span, where there is one, and its baggage.
pub(super) fn extract(headers: &Headers) -> Context {
    // The propagator that is there where none is installed hands back the current context, whatever it is given.
    let _nothing_around = Context::new().attach();
    let cx = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &Carried(headers))
    });
    let has_span = cx.span().span_context().is_valid() && cx.span().span_context().is_remote();
    let cx = if has_span {
        cx
    } else {
        match find(headers, TRACEPARENT).and_then(|parent| parse(parent, find(headers, TRACESTATE))) {
            Some(span) => cx.with_remote_span_context(span),
            None => cx,
        }
    };
    match find(headers, BAGGAGE) {
        Some(baggage) if cx.baggage().is_empty() => cx.with_baggage(read_baggage(baggage)),
        _ => cx,
    }
}

/// What a propagator writes; a name that is there already gets the newer value.
#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl Injector for Fields {
    fn set(&mut self, key: &str, value: String) {
        let is_name = (1..=255).contains(&key.len()) && key.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
        // An empty `tracestate` says nothing, and some brokers keep no empty values; and none counts on what is not printable.
        let is_value = !value.trim().is_empty() && value.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
        if !is_value || !is_name || key.starts_with(RESERVED_PREFIX) {
            return;
        }
        if let Some(field) = self.0.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(key)) {
            field.1 = value;
        } else if self.0.len() < FIELDS_MAX {
            self.0.push((key.to_owned(), value));
        }
    }
}

struct Carried<'a>(&'a Headers);

impl Extractor for Carried<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        find(self.0, key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

fn traceparent(span: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8())
}

fn parse(parent: &str, state: Option<&str>) -> Option<SpanContext> {
    let parent = parent.trim();
    // A later version may have more fields behind another dash.
    let (known, more) = parent.split_at_checked(55)?;
    let mut parts = known.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lower_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    if !(lower_hex(version, 2) && lower_hex(trace, 32) && lower_hex(span, 16) && lower_hex(flags, 2)) {
        return None;
    }
    if version == "ff" || (version == "00" && !more.is_empty()) || !(more.is_empty() || more.starts_with('-'))
    {
        return None;
    }
    let trace = TraceId::from_hex(trace).ok()?;
    let span = SpanId::from_hex(span).ok()?;
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    // A state that cannot be read does not cost the parent.
    let state = state.and_then(|state| TraceState::from_str(state).ok()).unwrap_or_default();
    let context = SpanContext::new(trace, span, flags, true, state);
    context.is_valid().then_some(context)
}

fn write_baggage(baggage: &Baggage) -> String {
    let mut text = String::new();
    for (key, (value, metadata)) in baggage {
        let before = text.len();
        if before > 0 {
            text.push(',');
        }
        text.push_str(key.as_str().trim());
        text.push('=');
        for byte in value.as_str().trim().bytes() {
            match byte {
                b'%' | b'"' | b',' | b';' | b'\\' | 0..=0x20 | 0x7f.. => {
                    // Writing to a string does not fail.
                    let _ = write!(text, "%{byte:02X}");
                }
                _ => text.push(char::from(byte)),
            }
        }
        let metadata = metadata.as_str().trim();
        // What would end the member, or the header, is not passed on.
        if !metadata.is_empty() && metadata.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b',') {
            text.push(';');
            text.push_str(metadata);
        }
        if text.len() > BAGGAGE_MAX_BYTES {
            text.truncate(before);
        }
    }
    text
}

fn read_baggage(text: &str) -> Vec<KeyValueMetadata> {
    let members = text.split(',').filter_map(|member| {
        let (pair, metadata) = member.split_once(';').unwrap_or((member, ""));
        let (key, value) = pair.split_once('=')?;
        let (key, value) = (key.trim(), decode(value.trim())?);
        let metadata = BaggageMetadata::from(metadata.trim());
        (!key.is_empty()).then(|| KeyValueMetadata::new(key.to_owned(), value, metadata))
    });
    members.collect()
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use opentelemetry::KeyValue;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().copied().collect()
    }

    fn unlimited(_: &Message) -> usize {
        usize::MAX
    }

    #[test]
    fn what_is_injected_is_extracted() {
        let before = headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "vendor=1,other=2")]);
        let cx = extract(&before);
        let mut message = Message::new("m");
        inject(&cx, &mut message, &unlimited);
        assert_eq!(message.headers(), &before);
    }

    #[test]
    fn malformed_parents_are_none() {
        for parent in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "00-0af7651916cd43dd8448eb211c80319c+b7ad6b7169203331-01",
            "äöü-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0ä",
        ] {
            assert!(parse(parent, None).is_none(), "{parent:?}");
        }
        assert!(parse(&PARENT.replacen("00", "01", 1), None).is_some(), "a later version");
        assert!(parse(&format!("01{}-more", &PARENT[2..]), None).is_some(), "with a field more");
        assert!(parse(PARENT, Some("not a state")).is_some(), "the parent does not hang on its state");
    }

    #[test]
    fn baggage_passes_and_is_escaped() {
        let cx = Context::new().with_baggage([KeyValue::new("who", "größe, 100 %; \"x\"")]);
        let mut message = Message::new("m");
        inject(&cx, &mut message, &unlimited);
        let written = message.header(BAGGAGE).unwrap();
        assert!(written.bytes().all(|byte| (0x21..=0x7e).contains(&byte)), "{written}");
        let read = extract(message.headers());
        assert_eq!(read.baggage().get("who").unwrap().as_str(), "größe, 100 %; \"x\"");
        assert!(!read.span().span_context().is_valid(), "baggage alone makes no parent");
    }

    #[test]
    fn what_is_around_is_not_what_was_carried() {
        let around = extract(&headers(&[(TRACEPARENT, PARENT)]));
        let _around = around.attach();
        let own = "00-11111111111111111111111111111111-2222222222222222-00";
        let cx = extract(&headers(&[(TRACEPARENT, own)]));
        assert_eq!(cx.span().span_context().trace_id().to_string(), "11111111111111111111111111111111");
        let cx = extract(&headers(&[(BAGGAGE, "k=v")]));
        assert!(!cx.span().span_context().is_valid(), "baggage alone makes no parent");
    }

    #[test]
    fn other_spellings_are_the_same_headers() {
        let foreign = headers(&[("Traceparent", PARENT), ("Baggage", "k=v")]);
        let cx = extract(&foreign);
        assert!(cx.span().span_context().is_valid() && cx.baggage().get("k").is_some());
        let mut message = Message::new("m").with_headers(foreign.clone());
        inject(&cx, &mut message, &unlimited);
        assert_eq!(message.headers(), &foreign, "no second one beside it");
    }

    #[test]
    fn foreign_baggage_is_read_as_far_as_it_goes() {
        let read = extract(&headers(&[(BAGGAGE, "a=1, b = two%20words ;prop=x,=none,broken%2,c=3;d")]));
        let mut pairs: Vec<_> =
            read.baggage().iter().map(|(key, (value, _))| format!("{key}={value}")).collect();
        pairs.sort();
        assert_eq!(pairs, ["a=1", "b=two words", "c=3"]);
    }

    #[test]
    fn nothing_is_added_beyond_the_room() {
        let cx = extract(&headers(&[(TRACEPARENT, PARENT), (BAGGAGE, "k=v")]));
        for (room, expected) in [(0, 0), (TRACEPARENT.len() + PARENT.len(), 1), (10, 1), (200, 2)] {
            let mut message = Message::new("m");
            inject(&cx, &mut message, &|_| room);
            assert_eq!(message.headers().len(), expected, "{room} bytes of room");
        }
    }

    #[test]
    fn a_context_that_is_there_stays() {
        let cx = extract(&headers(&[(TRACEPARENT, PARENT)]));
        let own = "00-11111111111111111111111111111111-2222222222222222-00";
        let mut message = Message::new("m").with_header(TRACEPARENT, own);
        inject(&cx, &mut message, &unlimited);
        assert_eq!(message.headers(), &headers(&[(TRACEPARENT, own)]));
    }
}
