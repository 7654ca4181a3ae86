//! The guide shows what is here: each of its blocks of Rust is a piece of this crate, word for word.

use std::fs;
use std::path::Path;

/// The text of each block, by the word behind its fence, and the line where it begins.
fn blocks(guide: &str) -> Vec<(&str, usize, Vec<&str>)> {
    let mut blocks = Vec::new();
    let mut open = None;
    for (number, line) in (1..).zip(guide.lines()) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language, number, Vec::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, _, block))) => block.push(line),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the last block has no end");
    blocks
}

/// Whether the lines stand one after the other in the source, perhaps further to the right.
fn is_piece_of(block: &[&str], source: &str) -> bool {
    let lines: Vec<&str> = source.lines().collect();
    lines.windows(block.len()).any(|piece| {
        let Some(indentation) = piece[0].strip_suffix(block[0]) else { return false };
        let same = |(shown, line): (&&str, &&str)| {
            if shown.is_empty() { line.is_empty() } else { line.strip_prefix(indentation) == Some(*shown) }
        };
        indentation.trim().is_empty() && block.iter().zip(piece).all(same)
    })
}

#[test]
fn the_guide_shows_pieces_of_this_crate() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = fs::read_to_string(here.join("../own-backend.md")).expect("the guide is beside this crate");
    let mut sources = vec![fs::read_to_string(here.join("tests/conformance.rs")).expect("the harness")];
    for file in fs::read_dir(here.join("src")).expect("the sources") {
        sources.push(fs::read_to_string(file.expect("a source").path()).expect("a source is text"));
    }
    let blocks = blocks(&guide);
    assert!(blocks.iter().filter(|(language, ..)| *language == "rust").count() > 10, "{blocks:?}");
    for (language, line, block) in blocks {
        match language {
            "rust" => {
                assert!(!block.is_empty(), "line {line}: an empty block");
                let found = sources.iter().any(|source| is_piece_of(&block, source));
                assert!(found, "line {line} of the guide: no piece of the crate:\n{}", block.join("\n"));
            }
            "sh" | "toml" | "text" => {}
            _ => panic!("line {line} of the guide: a block of {language:?}"),
        }
    }
}

#[test]
fn what_differs_is_no_piece() {
    let source = "mod a {\n    fn b() {\n        c();\n    }\n\n    fn d() {}\n}\n";
    for (block, expected) in [
        (&["fn b() {", "    c();", "}", "", "fn d() {}"][..], true),
        (&["    fn b() {", "        c();", "    }"], true),
        (&["fn b() {", "c();", "}"], false),
        (&["fn b() {", "}"], false),
        (&["b() {"], false),
        (&["fn b() {", "    e();"], false),
    ] {
        assert_eq!(is_piece_of(block, source), expected, "{block:?}");
    }
}
