//! The table of operators in the documentation is the one the backends would make today.
#![allow(clippy::unwrap_used, missing_docs)]

#[test]
fn the_page_of_operators_is_up_to_date() {
    let registry = portolan::registry().unwrap();
    let devices: Vec<_> =
        registry.devices().iter().map(|info| registry.open(&info.id.to_string()).unwrap()).collect();
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operators.md")).unwrap();
    let today = portolan::support::markdown(&devices).unwrap();
    let stale = today.lines().zip(page.lines()).find(|(today, page)| today != page);
    assert!(
        today == page,
        "docs/operators.md is stale; run: cargo run -- ops --markdown > docs/operators.md\nfirst difference: {stale:?}"
    );
}
