//! The dashboard against what is really exported: no panel asks for a name that is not there, and no instrument is
//! missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use buqueue::driver::{Activity, tell};
use buqueue_examples::Broker;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::shop::Shop;
use crate::telemetry::Telemetry;
use crate::{books, exposition, tree};

/// Added by Prometheus itself.
const SCRAPED: [&str; 2] = ["instance", "job"];

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_is_fed_and_every_instrument_is_shown() {
    let telemetry = Telemetry::install().unwrap();
    let text = short_day(&telemetry).await;
    let samples = exposition::parse(&text);
    // Which labels the samples of a name have, one or the other.
    let mut exported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sample in samples {
        exported.entry(sample.name).or_default().extend(sample.labels.into_keys());
    }

    let dashboard: Value = serde_json::from_str(include_str!("dashboard.json")).unwrap();
    let variables: BTreeSet<&str> = list(&dashboard["templating"]["list"], "name").collect();
    let mut shown = BTreeSet::new();
    for query in queries(&dashboard) {
        let Query { selectors, groups, variables: used } = scan(&query);
        assert!(!selectors.is_empty(), "{query}: no metric");
        for (metric, labels) in selectors {
            let there = exported.get(&metric).unwrap_or_else(|| panic!("{query}: {metric} is not exported"));
            for label in labels.union(&groups) {
                let is_there = there.contains(label) || SCRAPED.contains(&label.as_str());
                assert!(is_there, "{query}: {metric} has no label {label}, but {there:?}");
            }
            shown.insert(metric);
        }
        for variable in used {
            let is_there = variable.starts_with("__") || variables.contains(variable.as_str());
            assert!(is_there, "{query}: no variable ${variable}");
        }
    }

    let missing: Vec<_> = exported.keys().filter(|name| !shown.contains(family(name, &shown))).collect();
    assert_eq!(missing, ["target_info"], "exported and not shown");
    let guide = include_str!("../../OBSERVING.md");
    for instrument in instruments(guide) {
        let name = instrument.replace('.', "_");
        assert!(exported.keys().any(|exported| exported.starts_with(&name)), "{instrument} is not exported");
    }
}

/// Some orders of every kind, and what Prometheus would be answered afterwards.
async fn short_day(telemetry: &Telemetry) -> String {
    let (shop, outlets) = Shop::open(&Broker::in_memory()).await.unwrap();
    let enough = async {
        while shop.books().placed < 60 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    shop.run(outlets, Duration::from_millis(5), enough, &telemetry.registry).await.unwrap();
    // No connection is lost in memory.
    tell("memory", "orders", Activity::Reconnected);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(exposition::serve(listener, telemetry.registry.clone()));
    assert!(get(address, "/").await.starts_with("HTTP/1.1 404 "));
    let answer = get(address, "/metrics").await;
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let spans = telemetry.spans.all();
    for claim in books::claims(&shop, &exposition::parse(text)).into_iter().chain(tree::claims(&spans)) {
        assert!(claim.holds, "{}", claim.text);
    }
    text.to_owned()
}

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The parts of a histogram that a panel may ask for alone, all of them shown when one is.
fn family<'a>(name: &'a str, shown: &'a BTreeSet<String>) -> &'a str {
    let base = |name: &'a str| ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
    let Some(wanted) = base(name) else { return name };
    shown.iter().find(|shown| base(shown) == Some(wanted)).map_or(name, String::as_str)
}

/// The first column of the table of instruments.
fn instruments(guide: &str) -> Vec<&str> {
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let is_instrument =
        |kind: &str| ["counter", "up-down", "histogram", "gauge"].iter().any(|known| kind.starts_with(known));
    let found: Vec<_> = rows.filter(|(_, kind)| is_instrument(kind)).map(|(name, _)| name).collect();
    assert!(found.len() >= 12, "{found:?}");
    found
}

/// Everything on the dashboard that Prometheus is asked.
fn queries(dashboard: &Value) -> Vec<String> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        // A row that is folded has its panels inside.
        for panel in panel["panels"].as_array().into_iter().flatten().chain([panel]) {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"].as_str().unwrap();
                // What the legend names must have been kept by the query.
                let legend = target["legendFormat"].as_str().unwrap();
                for label in legend.split("{{").skip(1).filter_map(|part| part.split_once("}}")) {
                    let kept = &scan(query).groups;
                    assert!(kept.contains(label.0.trim()), "{legend:?} of {query}: keeps {kept:?}");
                }
                queries.push(query.to_owned());
            }
        }
    }
    assert!(queries.len() >= 10, "{queries:?}");
    for variable in list(&dashboard["templating"]["list"], "definition") {
        let (metric, label) = variable.strip_prefix("label_values(").unwrap().split_once(',').unwrap();
        // As a query that needs the same.
        queries.push(format!("sum by ({}) ({metric})", label.trim_end_matches(')')));
    }
    queries
}

fn list<'a>(values: &'a Value, field: &'static str) -> impl Iterator<Item = &'a str> {
    values.as_array().unwrap().iter().filter_map(move |value| value[field].as_str())
}

/// What a query needs.
#[derive(Debug, Default, PartialEq)]
struct Query {
    /// Metrics, each with the labels that it is selected by.
    selectors: Vec<(String, BTreeSet<String>)>,
    /// The labels of `by` and the like.
    groups: BTreeSet<String>,
    /// Grafana's.
    variables: BTreeSet<String>,
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Sign(char),
}

/// As much of PromQL as dashboards are written in.
fn scan(query: &str) -> Query {
    let mut found = Query::default();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    for part in query.split('$').skip(1) {
        found.variables.insert(part.split(|c| !is_word(c)).next().unwrap().to_owned());
    }
    let mut tokens = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            // Of a text and of a range nothing is needed.
            '"' => rest[1..].find('"').unwrap() + 2,
            '[' => rest.find(']').unwrap() + 1,
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        let (token, after) = rest.split_at(end);
        match first {
            '"' | '[' => {}
            c if is_word(c) && !c.is_ascii_digit() => tokens.push(Token::Word(token.to_owned())),
            c if is_word(c) || c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
        rest = after;
    }
    let words_until = |from: usize, end: char| -> (BTreeSet<String>, usize) {
        let length = tokens[from..].iter().position(|token| *token == Token::Sign(end)).unwrap();
        let words = tokens[from..from + length].iter().filter_map(|token| match token {
            Token::Word(word) => Some(word.clone()),
            Token::Sign(_) => None,
        });
        (words.collect(), from + length)
    };
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let Token::Word(word) = token else { continue };
        let is_keyword =
            |word: &str| ["by", "without", "on", "ignoring", "group_left", "group_right"].contains(&word);
        match tokens.get(at) {
            Some(Token::Sign('{')) => {
                let (labels, end) = words_until(at, '}');
                found.selectors.push((word.clone(), labels));
                at = end;
            }
            Some(Token::Sign('(')) if is_keyword(word) => {
                let (labels, end) = words_until(at, ')');
                found.groups.extend(labels);
                at = end;
            }
            // A function, or an aggregation.
            Some(Token::Sign('(')) => {}
            Some(Token::Word(next)) if is_keyword(next) => {}
            _ if ["and", "or", "unless", "bool", "offset"].contains(&word.as_str()) => {}
            _ => found.selectors.push((word.clone(), BTreeSet::new())),
        }
    }
    found
}

#[test]
fn queries_are_read() {
    let set = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<BTreeSet<_>>();
    let found = scan(
        r#"histogram_quantile(0.99, sum by (le, a) (rate(x_bucket{b="c d", e=~"$f"}[$__rate_interval]))) / on (g) y or 1 - z"#,
    );
    let selectors = [("x_bucket", set(&["b", "e"])), ("y", set(&[])), ("z", set(&[]))];
    assert_eq!(found.selectors, selectors.map(|(name, labels)| (name.to_owned(), labels)));
    assert_eq!(found.groups, set(&["a", "g", "le"]));
    assert_eq!(found.variables, set(&["__rate_interval", "f"]));
}
