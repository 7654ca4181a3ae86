//! The crates as they would be published.

use std::collections::BTreeMap;
use std::fs;

use crate::error::{Context, Result, bail};
use crate::process::{output, say};
use crate::workspace::{cargo, manifest, root, target, without_warnings};

pub const ARGUMENTS: &str = "[--publish-order] [--no-verify] [--allow-dirty] [--offline]";
pub const ABOUT: &str =
    "    Packages every crate that is published, builds each from its package, and prints how large they are.
    A warning is a failure.

    --publish-order  only prints the crates in the order in which they can be published
    --no-verify      does not build them
    --allow-dirty, --offline   as in `cargo package`
";

/// What each package must have beside its sources.
const REQUIRED: &[&str] = &["LICENSE", "README.md"];

pub fn command(arguments: &[String]) -> Result<()> {
    let mut package = cargo(&["package"]);
    let mut only_order = false;
    for argument in arguments {
        match argument.as_str() {
            "--publish-order" => only_order = true,
            "--no-verify" | "--allow-dirty" | "--offline" => {
                package.arg(argument);
            }
            other => bail!("unknown option `{other}`"),
        }
    }
    let crates = publish_order()?;
    if only_order {
        for name in crates {
            say(&name);
        }
        return Ok(());
    }
    for name in &crates {
        accepted(name, &manifest(name)?)?;
    }
    // Together, or one that needs another would look for it in the registry.
    package.args(crates.iter().flat_map(|name| ["-p", name]));
    without_warnings(package)?;
    let folder = target()?.join("package");
    say("| crate | files | size, KiB |");
    say("|---|---|---|");
    for name in &crates {
        let listed = output(&mut cargo(&["package", "--list", "--allow-dirty", "-p", name]))?;
        let files: Vec<&str> = listed.lines().collect();
        if let Some(missing) = REQUIRED.iter().find(|file| !files.contains(file)) {
            bail!("the package of {name} has no {missing}");
        }
        let file = folder.join(format!("{name}-{}.crate", version(name)?));
        let size = fs::metadata(&file).context(|| format!("no package {}", file.display()))?.len();
        say(&format!("| {name} | {} | {} |", files.len(), size.div_ceil(1024)));
    }
    Ok(())
}

/// The crates that are published, each behind those of ours that it needs, its tests included.
pub fn publish_order() -> Result<Vec<String>> {
    let mut crates: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir(root())? {
        let folder = entry?.file_name().to_string_lossy().into_owned();
        // The facade or one of its parts; folders are named as their crates.
        if folder.starts_with("buqueue") {
            let needed = needed(&manifest(&folder)?);
            crates.insert(folder, needed);
        }
    }
    sorted(crates)
}

/// Of those that need nothing that is still to come, the first by name goes next.
fn sorted(mut crates: BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
    let mut order = Vec::new();
    while !crates.is_empty() {
        let free = crates.iter().find(|(_, needed)| needed.iter().all(|name| order.contains(name)));
        let Some(name) = free.map(|(name, _)| name.clone()) else {
            let left: Vec<&str> = crates.keys().map(String::as_str).collect();
            bail!("none of {} can be published first", left.join(", "));
        };
        crates.remove(&name);
        order.push(name);
    }
    Ok(order)
}

/// Those of our crates that a manifest names as dependencies of any kind.
fn needed(manifest: &str) -> Vec<String> {
    let mut needed = Vec::new();
    let mut in_dependencies = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]");
        } else if in_dependencies && line.starts_with("buqueue") {
            needed.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    needed
}

/// What the registry refuses and cargo does not look at.
fn accepted(name: &str, manifest: &str) -> Result<()> {
    let keywords = strings(manifest, "keywords");
    if keywords.is_empty() || keywords.len() > 5 {
        bail!("{name} has {} keywords, one to five are allowed", keywords.len());
    }
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+');
    if let Some(keyword) = keywords.iter().find(|word| word.len() > 20 || !word.chars().all(is_allowed)) {
        bail!("{name} has the keyword {keyword:?}: at most 20 letters, digits, `_`, `-` and `+` are allowed");
    }
    let categories = strings(manifest, "categories");
    if categories.is_empty() || categories.len() > 5 {
        bail!("{name} has {} categories, one to five are allowed", categories.len());
    }
    Ok(())
}

/// The strings of a list that stands on one line.
fn strings<'a>(manifest: &'a str, key: &str) -> Vec<&'a str> {
    let list = manifest.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    list.unwrap_or_default().split('"').skip(1).step_by(2).collect()
}

fn version(name: &str) -> Result<String> {
    let id = output(&mut cargo(&["pkgid", "-p", name]))?;
    Ok(id.trim().rsplit(['#', '@']).next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crate_needs_is_published_before_it() -> Result<()> {
        let order = publish_order()?;
        assert_eq!(order.first().map(String::as_str), Some("buqueue-core"));
        assert_eq!(order.last().map(String::as_str), Some("buqueue"));
        let place = |name: &str| order.iter().position(|other| other == name);
        assert!(place("buqueue-conformance") < place("buqueue-redis"), "{order:?}");
        Ok(())
    }

    #[test]
    fn a_cycle_is_told() {
        let needs = |name: &str, needed: &str| (name.to_owned(), vec![needed.to_owned()]);
        assert!(sorted(BTreeMap::from([needs("a", "b"), needs("b", "a")])).is_err());
    }

    #[test]
    fn dependencies_of_every_kind_count_and_features_do_not() {
        let manifest = "[dependencies]\nbuqueue-core.workspace = true\nbytes = \"1\"\n[features]\nbuqueue-x = []\n\
                        [dev-dependencies]\nbuqueue-memory = { workspace = true }\n";
        assert_eq!(needed(manifest), ["buqueue-core", "buqueue-memory"]);
    }

    #[test]
    fn every_crate_is_accepted() -> Result<()> {
        publish_order()?.iter().try_for_each(|name| accepted(name, &manifest(name)?))
    }
}
