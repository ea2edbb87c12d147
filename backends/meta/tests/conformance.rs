//! The meta backend against the suite, counting fused operators as one kernel and through their parts: what is
//! left of the contract without data.
#![allow(missing_docs)]

mod fused {
    use portolan_meta::{MetaBackend, MetaOptions};

    portolan_conformance::suite! {
        backend: || Ok::<_, portolan_ops::OpError>(MetaBackend::new(MetaOptions::default())),
    }
}

mod composed {
    use portolan_meta::{Count, MetaBackend, MetaOptions};

    portolan_conformance::suite! {
        backend: || Ok::<_, portolan_ops::OpError>(MetaBackend::new(MetaOptions {
            count: Count::Composed,
            ..MetaOptions::default()
        })),
    }
}
