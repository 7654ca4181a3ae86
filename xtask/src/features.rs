//! Each crate with each of its features, and the facade with each backend and what may be added to it.

use std::process::Command;

use crate::error::{Result, bail};
use crate::package::publish_order;
use crate::process::{note, say};
use crate::workspace::{cargo, manifest, root, without_warnings};

pub const ARGUMENTS: &str = "[--msrv] [FEATURE…]";
pub const ABOUT: &str =
    "    Checks every crate without features, with each feature alone and with all, and the facade with each
    backend and all that may be added to it. A warning is a failure.

    FEATURE  only the facade, with this feature alone, and a backend also with all that may be added
    --msrv   with the Rust that the crates say is enough; `rustup toolchain install` it first
";

const FACADE: &str = "buqueue";

/// What may be added to any backend.
const ADDED: &[&str] = &["serde", "tracing", "metrics"];

/// A crate with some of its features.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    name: String,
    features: Vec<String>,
}

pub fn command(arguments: &[String]) -> Result<()> {
    let (options, names): (Vec<String>, Vec<String>) =
        arguments.iter().cloned().partition(|argument| argument == "--msrv");
    let selections = if names.is_empty() {
        every()?
    } else {
        let mut selections = Vec::new();
        for feature in asked_for(&names)? {
            selections.push(Selection::new(FACADE, &[&feature]));
            selections.extend(with_all_added(&feature));
        }
        selections
    };
    for selection in &selections {
        let label = selection.check(!options.is_empty())?;
        say(&format!("ok  {label}"));
    }
    Ok(())
}

fn every() -> Result<Vec<Selection>> {
    let mut selections = Vec::new();
    for name in publish_order()? {
        selections.extend(of_crate(&name, &of(&name)?));
    }
    selections.extend(all()?.iter().filter_map(|feature| with_all_added(feature)));
    Ok(selections)
}

/// Without features, with each alone, and with all.
fn of_crate(name: &str, features: &[String]) -> Vec<Selection> {
    let mut selections = vec![Selection::new(name, &[])];
    selections.extend(features.iter().map(|feature| Selection::new(name, &[feature])));
    if features.len() > 1 {
        selections.push(Selection { name: name.to_owned(), features: features.to_vec() });
    }
    selections
}

/// The facade with a backend and what may be added; nothing for a feature that is no backend.
fn with_all_added(feature: &str) -> Option<Selection> {
    let features: Vec<&str> = std::iter::once(feature).chain(ADDED.iter().copied()).collect();
    (!feature.is_empty() && !ADDED.contains(&feature)).then(|| Selection::new(FACADE, &features))
}

impl Selection {
    fn new(name: &str, features: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            features: features.iter().map(|feature| (*feature).to_owned()).collect(),
        }
    }

    fn label(&self) -> String {
        let features = self.features.join(", ");
        format!("{} with {}", self.name, name_of(&features))
    }

    /// Returns what was checked.
    fn check(&self, msrv: bool) -> Result<String> {
        let mut check = cargo(&[]);
        let mut label = self.label();
        if msrv {
            let (major, minor) = self.rust_version()?;
            let version = format!("{major}.{minor}");
            label.push_str(&format!(", Rust {version}"));
            check = Command::new("rustup");
            check.args(["run", &version, "cargo"]).current_dir(root());
        }
        note(&format!("== {label}"));
        check.args([
            "check",
            "-p",
            &self.name,
            "--no-default-features",
            "--features",
            &self.features.join(","),
        ]);
        without_warnings(check)?;
        Ok(label)
    }

    /// What the crate needs, or a backend that one of its features brings.
    fn rust_version(&self) -> Result<(u32, u32)> {
        let mut version = rust_version(&self.name, &manifest(&self.name)?)?;
        for feature in &self.features {
            let backend = format!("buqueue-{feature}");
            if let Ok(manifest) = manifest(&backend) {
                version = version.max(rust_version(&backend, &manifest)?);
            }
        }
        Ok(version)
    }
}

fn rust_version(name: &str, manifest: &str) -> Result<(u32, u32)> {
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.split('"').next());
    let numbers = version.and_then(|version| version.split_once('.'));
    match numbers.map(|(major, minor)| (major.parse(), minor.parse())) {
        Some((Ok(major), Ok(minor))) => Ok((major, minor)),
        _ => bail!("{name} has no rust-version of the form 1.2"),
    }
}

/// The features that are named, or none and then every one.
pub fn asked_for(arguments: &[String]) -> Result<Vec<String>> {
    let known = all()?;
    if let Some(unknown) = arguments.iter().find(|name| !known.contains(name)) {
        bail!("no feature {unknown:?}; known are {}", known.join(", "));
    }
    Ok(if arguments.is_empty() {
        std::iter::once(String::new()).chain(known).collect()
    } else {
        arguments.to_vec()
    })
}

pub fn name_of(feature: &str) -> &str {
    if feature.is_empty() { "no feature" } else { feature }
}

/// The features of the facade.
pub fn all() -> Result<Vec<String>> {
    of(FACADE)
}

/// The features of a crate.
fn of(name: &str) -> Result<Vec<String>> {
    let manifest = manifest(name)?;
    let lines = manifest.lines().skip_while(|line| *line != "[features]").skip(1);
    let own = lines.take_while(|line| !line.starts_with('['));
    let mut features: Vec<String> = (own.filter(|line| !line.starts_with([' ', '#', ']'])))
        .filter_map(|line| Some(line.split_once('=')?.0.trim().to_owned()))
        .filter(|name| name != "default")
        .collect();
    features.sort();
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_of_a_crate_are_found() -> Result<()> {
        let features = all()?;
        for known in ["kafka", "memory", "metrics", "nats", "rabbitmq", "redis", "sqs", "tracing"] {
            assert!(features.iter().any(|feature| feature == known), "{known} is not in {features:?}");
        }
        assert!(asked_for(&["fax".to_owned()]).is_err());
        assert_eq!(of("buqueue-core")?, ["metrics", "serde", "tls", "tracing"]);
        assert!(of("buqueue-conformance")?.is_empty());
        Ok(())
    }

    #[test]
    fn each_feature_is_checked_alone_and_all_together() {
        let [a, b] = ["a", "b"].map(str::to_owned);
        let labels = |features: &[String]| -> Vec<String> {
            of_crate("crate", features).iter().map(Selection::label).collect()
        };
        assert_eq!(labels(&[]), ["crate with no feature"]);
        assert_eq!(labels(std::slice::from_ref(&a)), ["crate with no feature", "crate with a"]);
        assert_eq!(labels(&[a, b]).last().map(String::as_str), Some("crate with a, b"));
    }

    #[test]
    fn every_backend_is_checked_with_what_may_be_added() -> Result<()> {
        let every = every()?;
        assert!(every.contains(&Selection::new(FACADE, &["nats", "serde", "tracing", "metrics"])));
        assert_eq!(with_all_added("tracing"), None);
        assert_eq!(with_all_added(""), None);
        Ok(())
    }

    #[test]
    fn a_backend_may_need_a_newer_rust_than_the_facade() -> Result<()> {
        let version = |features: &[&str]| Selection::new(FACADE, features).rust_version();
        assert_eq!(version(&["tracing"])?, version(&[])?);
        assert!(version(&["sqs"])? > version(&[])?);
        assert_eq!(version(&["memory", "sqs"])?, version(&["sqs"])?);
        assert!(rust_version("crate", "[package]\n").is_err());
        Ok(())
    }
}
