//! Finds the driver's libraries, opens them, and looks symbols up when they are first asked for.

use crate::symbols::{Collectives, Descriptors, Operators, Runtime};
use libloading::Library;
use std::error::Error;
use std::ffi::{OsString, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a driver, or a part of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A library that nothing works without is not there, or cannot be opened.
    #[error("{name} was not found: {tried}; install CANN, or name its folder in ASCEND_HOME_PATH")]
    Library {
        /// Its file name.
        name: &'static str,
        /// Where it was looked for, and what the system said.
        tried: String,
    },
    /// No library of the driver has a symbol.
    #[error("no symbol {symbol} in {libraries}; a newer CANN may have it")]
    Symbol {
        /// The symbol.
        symbol: &'static str,
        /// The libraries that were asked.
        libraries: String,
    },
}

/// An open library, and what messages call it. It stays loaded: drivers have threads of their own, which would go on in
/// code that is gone.
pub(crate) struct Opened {
    name: String,
    library: ManuallyDrop<Library>,
}

/// The libraries that one table's symbols are looked up in, first to last.
pub(crate) type Search = Vec<Arc<Opened>>;

/// The address of a symbol in the first library that has it.
pub(crate) fn find(libraries: &Search, symbol: &str) -> Option<*mut c_void> {
    // SAFETY: an address is taken and nothing is called; the table that keeps it also keeps the library.
    libraries.iter().find_map(|opened| unsafe {
        opened.library.get::<*mut c_void>(symbol).ok().and_then(|found| found.try_as_raw_ptr())
    })
}

pub(crate) fn missing(libraries: &Search, symbol: &'static str) -> LoadError {
    let names: Vec<&str> = libraries.iter().map(|opened| opened.name.as_str()).collect();
    let libraries = if names.is_empty() { "any library".into() } else { names.join(", ") };
    LoadError::Symbol { symbol, libraries }
}

/// A table of symbols. Each method gives the function of its name, looked up when it is first asked for.
macro_rules! symbols {
    (
        $(#[$doc:meta])*
        $table:ident { $( fn $name:ident ( $( $arg:ident : $ty:ty ),* $(,)? ) -> $ret:ty; )* }
    ) => {
        $(#[$doc])*
        ///
        /// Each method gives the function of its name, or says which symbol is missing. The function is as unsafe to
        /// call as the vendor's C is, and may be called while this table lives.
        #[allow(non_snake_case)]
        pub struct $table {
            libraries: crate::load::Search,
            $( $name: std::sync::OnceLock<Option<unsafe extern "C" fn($($ty),*) -> $ret>>, )*
        }

        #[allow(non_snake_case, clippy::type_complexity)]
        impl $table {
            pub(crate) fn new(libraries: crate::load::Search) -> Self {
                Self { libraries, $( $name: std::sync::OnceLock::new(), )* }
            }

            /// Where a symbol is, if the driver has it.
            pub fn address(&self, symbol: &str) -> Option<*mut core::ffi::c_void> {
                crate::load::find(&self.libraries, symbol)
            }

            /// Every symbol of this table, whether the driver has it or not.
            pub const NAMES: &[&str] = &[$( stringify!($name) ),*];

            /// Whether the driver has a symbol.
            pub fn has(&self, symbol: &str) -> bool {
                self.address(symbol).is_some()
            }

            /// The first of several symbols that the driver has: newer versions come first.
            pub fn newest(&self, symbols: &[&'static str]) -> Option<&'static str> {
                symbols.iter().copied().find(|symbol| self.has(symbol))
            }

            $(
                #[doc = concat!("`", stringify!($name), "`, if the driver has it.")]
                pub fn $name(&self) -> Result<unsafe extern "C" fn($( $arg: $ty ),*) -> $ret, crate::load::LoadError> {
                    let looked_up = self.$name.get_or_init(|| {
                        let address = crate::load::find(&self.libraries, stringify!($name))?;
                        // SAFETY: the address of a function with this name in the vendor's interface, whose prototype
                        // is the one declared; scripts/check-cann-abi.sh compares them. It is not NULL.
                        Some(unsafe {
                            core::mem::transmute::<
                                *mut core::ffi::c_void,
                                unsafe extern "C" fn($( $ty ),*) -> $ret,
                            >(address)
                        })
                    });
                    looked_up.ok_or_else(|| crate::load::missing(&self.libraries, stringify!($name)))
                }
            )*
        }
    };
}
pub(crate) use symbols;

/// The folders with libraries, first to last; empty where the system's own search has to do.
fn folders(given: Option<&Path>, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    match given {
        Some(folder) => vec![folder.to_owned()],
        None => ["ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"]
            .into_iter()
            .filter_map(variable)
            .filter(|value| !value.is_empty())
            .map(|root| Path::new(&root).join("lib64"))
            .collect(),
    }
}

/// Opens a library from the first folder that has it, or from where the system looks.
fn open(folders: &[PathBuf], name: &'static str) -> Result<Arc<Opened>, LoadError> {
    let places: Vec<PathBuf> = match folders {
        [] => vec![name.into()],
        folders => folders.iter().map(|folder| folder.join(name)).collect(),
    };
    let mut tried = Vec::new();
    for place in places {
        match open_file(&place) {
            Ok(opened) => return Ok(opened),
            Err(why) => tried.push(why),
        }
    }
    Err(LoadError::Library { name, tried: tried.join("; ") })
}

fn open_file(place: &Path) -> Result<Arc<Opened>, String> {
    // SAFETY: running the initialisers of the vendor's library is what asking for its device means.
    let library = unsafe { Library::new(place) }.map_err(|error| {
        // The system's own words are the error's source.
        let words = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        format!("{}: {}", place.display(), words.replace('\n', " "))
    })?;
    let name = place.file_name().unwrap_or(place.as_os_str()).to_string_lossy().into_owned();
    Ok(Arc::new(Opened { name, library: ManuallyDrop::new(library) }))
}

/// Operator libraries that customers installed: `opp/vendors/<vendor>/op_api/lib/libcust_opapi.so` beside `lib64`.
fn customers(folders: &[PathBuf]) -> Search {
    let vendors = folders.iter().filter_map(|folder| folder.parent()).map(|root| root.join("opp/vendors"));
    let mut found: Vec<PathBuf> = vendors
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(Result::ok))
        .map(|entry| entry.path().join("op_api/lib/libcust_opapi.so"))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.iter().filter_map(|path| open_file(path).ok()).collect()
}

/// Where operators are looked for after customers' own: split by package first, the old whole last.
const OPERATOR_LIBRARIES: [&str; 7] = [
    "libopapi_math.so",
    "libopapi_nn.so",
    "libopapi_cv.so",
    "libopapi_transformer.so",
    "libopapi_oam.so",
    "libopapi.so",
    "libopapi_legacy.so",
];

/// An opened driver: one table a library.
pub struct Libraries {
    /// The runtime.
    pub runtime: Runtime,
    /// Descriptors and executors.
    pub descriptors: Descriptors,
    /// Operators, wherever they are.
    pub operators: Operators,
    /// Collectives; every symbol is missing where the driver has none.
    pub collectives: Collectives,
}

impl Libraries {
    /// Opens the driver in `folder`, or where `ASCEND_HOME_PATH`, `ASCEND_TOOLKIT_HOME` or the system says.
    ///
    /// # Errors
    /// `Library` when the runtime or the descriptors' library is missing. Operators and collectives may be: then
    /// their symbols are.
    pub fn open(folder: Option<&Path>) -> Result<Self, LoadError> {
        let folders = folders(folder, |name| std::env::var_os(name));
        let runtime = vec![open(&folders, "libascendcl.so")?];
        let descriptors = vec![open(&folders, "libnnopbase.so")?];
        let mut operators = customers(&folders);
        operators.extend(OPERATOR_LIBRARIES.into_iter().filter_map(|name| open(&folders, name).ok()));
        let collectives = ["libhccl.so", "libhcomm.so"];
        let collectives = collectives.into_iter().filter_map(|name| open(&folders, name).ok()).collect();
        Ok(Self {
            runtime: Runtime::new(runtime),
            descriptors: Descriptors::new(descriptors),
            operators: Operators::new(operators),
            collectives: Collectives::new(collectives),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_the_folder_it_was_looked_for_in() {
        let folder = tempfile::tempdir().unwrap();
        let Err(LoadError::Library { name, tried }) = Libraries::open(Some(folder.path())) else {
            panic!("opened an empty folder")
        };
        assert_eq!(name, "libascendcl.so");
        assert!(tried.contains(&folder.path().display().to_string()), "{tried}");
    }

    #[test]
    fn a_missing_symbol_is_named_with_the_libraries_that_were_asked() {
        let none = Operators::new(Vec::new());
        let error = none.aclnnAdd().unwrap_err();
        assert_eq!(error, LoadError::Symbol { symbol: "aclnnAdd", libraries: "any library".into() });
        assert_eq!(none.newest(&["aclnnQuantMatmulV5", "aclnnQuantMatmulV4"]), None);
    }

    #[test]
    fn the_given_folder_wins_and_the_environment_is_asked_in_order() {
        let variables = |name: &str| match name {
            "ASCEND_HOME_PATH" => Some("/cann".into()),
            "ASCEND_TOOLKIT_HOME" => Some("/toolkit".into()),
            _ => None,
        };
        let given = folders(Some(Path::new("/given")), variables);
        assert_eq!(given, [Path::new("/given")]);
        assert_eq!(folders(None, variables), [Path::new("/cann/lib64"), Path::new("/toolkit/lib64")]);
        assert!(folders(None, |_| None).is_empty());
    }

    #[test]
    fn the_tables_declare_the_interface() {
        for name in ["aclrtMalloc", "aclrtStreamWaitEvent", "aclmdlRICaptureBegin"] {
            assert!(Runtime::NAMES.contains(&name), "{name}");
        }
        for name in ["aclnnAdd", "aclnnAddGetWorkspaceSize", "aclnnFusedInferAttentionScoreV5"] {
            assert!(Operators::NAMES.contains(&name), "{name}");
        }
        assert!(Descriptors::NAMES.contains(&"aclnnInit") && Collectives::NAMES.contains(&"HcclAllReduce"));
    }
}
