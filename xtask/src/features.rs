//! The facade's features, each by itself.

use crate::error::{Result, bail};
use crate::package::{manifest, without_warnings};
use crate::process::{note, say};
use crate::test::cargo;

pub const ARGUMENTS: &str = "[FEATURE…]";
pub const ABOUT: &str =
    "    Checks the facade without features and with each feature alone. A warning is a failure. With another
    toolchain, as in `cargo +1.88 xtask features memory`, it tells whether that one will do.
";

pub fn command(arguments: &[String]) -> Result<()> {
    for feature in asked_for(arguments)? {
        let name = name_of(&feature);
        note(&format!("== {name}"));
        without_warnings(cargo(&[
            "check",
            "-p",
            "buqueue",
            "--no-default-features",
            "--features",
            &feature,
        ]))?;
        say(&format!("ok  {name}"));
    }
    Ok(())
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
    let manifest = manifest("buqueue")?;
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
    fn the_features_of_the_facade_are_found() -> Result<()> {
        let features = all()?;
        for known in ["kafka", "memory", "metrics", "nats", "rabbitmq", "redis", "sqs", "tracing"] {
            assert!(features.iter().any(|feature| feature == known), "{known} is not in {features:?}");
        }
        assert!(asked_for(&["fax".to_owned()]).is_err());
        Ok(())
    }
}
