//! What the documentation points to in this repository is there.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const HERE: &str = "https://github.com/buqueue/buqueue/";

#[test]
fn links_into_the_repository_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let listed = Command::new("git").args(["ls-files", "*.md", "*.rs"]).current_dir(root).output().unwrap();
    assert!(listed.status.success(), "git ls-files");
    let mut checked = 0;
    for file in String::from_utf8(listed.stdout).unwrap().lines() {
        // Deleted, and not committed yet.
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        for target in absolute(&text).chain(relative(file, &text)) {
            checked += 1;
            assert!(root.join(&target).exists(), "{file} links to {}, which is not there", target.display());
        }
    }
    assert!(checked > 50, "only {checked} links were found");
}

/// Files that are named by the address of the repository.
fn absolute(text: &str) -> impl Iterator<Item = PathBuf> {
    text.split(HERE).skip(1).filter_map(|rest| {
        let path = rest.strip_prefix("blob/main/").or_else(|| rest.strip_prefix("tree/main/"))?;
        let end = path.find(|c: char| c.is_whitespace() || matches!(c, ')' | '#' | '"' | '>' | '`'));
        Some(PathBuf::from(&path[..end.unwrap_or(path.len())]))
    })
}

/// Those that a page names from where it is: `](path)` and `]: path`.
fn relative(file: &str, text: &str) -> impl Iterator<Item = PathBuf> {
    let folder = Path::new(file).parent().unwrap().to_owned();
    let is_page = file.ends_with(".md");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let targets = targets
        .chain(text.split("\n[").filter_map(|line| line.split("]: ").nth(1)?.split(['\n', '#']).next()));
    let targets = targets.filter(move |target| is_page && !target.is_empty() && !target.contains([':', ' ']));
    targets.map(move |target| folder.join(target)).collect::<Vec<_>>().into_iter()
}
