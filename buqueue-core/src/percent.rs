//! Any text as visible ASCII, for brokers whose headers carry no more: percent-encoding, as in the query of a URL.

use crate::Headers;

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Encodes one text.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    push(&mut encoded, text);
    encoded
}

/// Decodes one text; `None` when it is not one that [`encode`] wrote.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let value = digit(rest.next())? * 16 + digit(rest.next())?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// Appends a header as `name=value`, after a `&` where something is there already.
pub fn push_header(encoded: &mut String, name: &str, value: &str) {
    if !encoded.is_empty() {
        encoded.push('&');
    }
    push(encoded, name);
    encoded.push('=');
    push(encoded, value);
}

/// Sets the headers that [`push_header`] wrote; what cannot be read is left out.
pub fn read_headers(encoded: &str, headers: &mut Headers) {
    for pair in encoded.split('&') {
        let Some((name, value)) = pair.split_once('=') else { continue };
        if let (Some(name), Some(value)) = (decode(name), decode(value)) {
            headers.insert(&name, &value);
        }
    }
}

fn push(encoded: &mut String, text: &str) {
    for byte in text.bytes() {
        if (0x21..=0x7e).contains(&byte) && !matches!(byte, b'%' | b'&' | b'=') {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back() {
        for text in ["", "plain", "a b", "100%&x=y", "zeilen\r\n", "größe", "\0"] {
            let encoded = encode(text);
            assert!(encoded.bytes().all(|byte| (0x21..=0x7e).contains(&byte)), "{encoded:?}");
            assert_eq!(decode(&encoded).as_deref(), Some(text));
        }
        for text in ["%", "%4", "%zz", "%FF"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }

    #[test]
    fn headers_come_back() {
        let mut encoded = String::new();
        for (name, value) in [("a", "1"), ("b=", ""), ("c&", "\n")] {
            push_header(&mut encoded, name, value);
        }
        let mut headers = Headers::new();
        read_headers(&encoded, &mut headers);
        assert_eq!(
            (headers.get("a"), headers.get("b="), headers.get("c&")),
            (Some("1"), Some(""), Some("\n"))
        );
        assert_eq!(headers.len(), 3);
    }
}
