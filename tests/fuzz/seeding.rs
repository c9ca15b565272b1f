//! How a fuzzer gets its seeds.

#[path = "targets/seeds.rs"]
mod seeds;

use std::path::Path;
use std::{env, fs};

/// Writes the seeds of a target into the folder that `FUZZ_SEEDS` names, if it is set. A fuzzer reads its corpus after it
/// began with this.
pub fn write(target: &str) {
    let Some(folder) = env::var_os("FUZZ_SEEDS") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (number, seed) in seeds::of(target, &root).iter().enumerate() {
        fs::write(Path::new(&folder).join(format!("seed-{number:03}")), seed).expect("writing a seed");
    }
}
