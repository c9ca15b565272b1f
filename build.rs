//! Compiles bpf/*.bpf.c and writes a skeleton of each object into OUT_DIR; src/bpf includes them. The same for the gRPC
//! service, for src/control/grpc.

use std::env;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;
use prost::Message;

/// Objects with a skeleton, by the stem of their source.
const OBJECTS: &[&str] = &[
    "bpf/abi",
    "bpf/xdp_firewall",
    "bpf/xdp_ratelimit",
    "bpf/xdp_syncookie",
    "bpf/xdp_steer",
    "bpf/tc_egress",
    "bpf/tc_mirror",
    "bpf/tc_ids",
];

/// Objects of benches and tests.
const TEST_SOURCES: &[&str] = &["benches/bench.bpf.c", "tests/support/syn_flood.bpf.c"];

/// The folder of the gRPC service, and its file there.
const PROTO: (&str, &str) = ("src/control/grpc", "alerts.proto");

fn main() {
    let out_dir = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=bpf");
    println!("cargo:rerun-if-changed=include");
    for source in TEST_SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rerun-if-env-changed=EBPFSENTINEL_CLANG");
    let clang = clang();
    for object in OBJECTS {
        let source = format!("{object}.bpf.c");
        let stem = Path::new(object).file_name().expect("an object has a name").to_str().expect("ASCII").to_owned();
        compile(&source, &clang)
            .obj(out_dir.join(format!("{stem}.bpf.o")))
            .build_and_generate(out_dir.join(format!("{stem}.skel.rs")))
            .unwrap_or_else(|error| panic!("compiling {source}: {error:#}"));
    }
    // Benches and tests read these objects as they are.
    for source in TEST_SOURCES {
        let name = Path::new(source).file_name().expect("a source has a name").to_str().expect("ASCII");
        compile(source, &clang)
            .obj(out_dir.join(name.replace(".bpf.c", ".bpf.o")))
            .build()
            .unwrap_or_else(|error| panic!("compiling {source}: {error:#}"));
    }
    generate_grpc(&out_dir);
}

/// Writes the service's code, and its description, which the server shows by reflection.
fn generate_grpc(out_dir: &Path) {
    let (folder, file) = PROTO;
    println!("cargo:rerun-if-changed={folder}/{file}");
    let description = protox::compile([file], [folder]).unwrap_or_else(|error| panic!("{folder}/{file}: {error}"));
    // The generator writes no description when it is given one.
    std::fs::write(out_dir.join("alerts.fds"), description.encode_to_vec()).expect("OUT_DIR can be written");
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(description)
        .unwrap_or_else(|error| panic!("generating code of {folder}/{file}: {error}"));
}

fn compile(source: &str, clang: &Path) -> SkeletonBuilder {
    let mut builder = SkeletonBuilder::new();
    builder.source(source).clang(clang).clang_args([
        "-Iinclude",
        "-mcpu=v3",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-parameter",
    ]);
    builder
}

/// The compiler: `EBPFSENTINEL_CLANG`, or the newest that the usual distributions install.
fn clang() -> PathBuf {
    if let Some(path) = env::var_os("EBPFSENTINEL_CLANG") {
        return path.into();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = ["clang-19", "clang-20", "clang-21", "clang"]
        .iter()
        .find_map(|name| env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file()));
    found.unwrap_or_else(|| {
        panic!("no clang found that compiles for BPF; run packaging/setup or set EBPFSENTINEL_CLANG")
    })
}
