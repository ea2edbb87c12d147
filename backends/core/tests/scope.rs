//! Where in a program an operator stands.
#![allow(missing_docs)]

use portolan_core::{Path, Scope};

#[test]
fn a_path_lies_within_whole_names_only() {
    let _layer = Scope::numbered("layers", 3);
    let _part = Scope::named("ffn");
    let path = Path::here();
    for (outer, within) in
        [("", true), ("layers", true), ("layers.3", true), ("layers.3.ffn", true), ("layers.30", false)]
    {
        assert_eq!(path.is_within(outer), within, "{outer}");
    }
    assert!(!path.is_within("layer") && !path.is_within("ffn"));
}

#[test]
fn scopes_closed_out_of_order_leave_nothing_behind() {
    let outer = Scope::named("outer");
    let inner = Scope::named("inner");
    drop(outer);
    drop(inner);
    assert!(Path::here().is_empty());
}
