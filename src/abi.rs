//! What crosses the kernel line: the Rust side of include/abi.h, generated from its BTF by build.rs.
//!
//! Types and constants keep the names that they have in C. Every type is plain data: any bytes are a valid value.

#[allow(missing_docs, clippy::all, dead_code)] // generated code
mod generated {
    include!(concat!(env!("OUT_DIR"), "/abi.skel.rs"));
}

pub use generated::types::*;

/// Types that are nothing but integers, so that any bytes of the right length are one.
///
/// # Safety
/// The type is `#[repr(C)]`, has no padding, no reference and no invalid bit pattern.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($name:ident),*) => {
        // SAFETY: structs of include/abi.h, whose static assertions leave no hidden padding, made of integers only.
        $(unsafe impl Plain for $name {})*
    };
}
plain!(
    fw_tables,
    fw_guard,
    fw_control,
    fw_flow_set_v4,
    fw_flow_set_v6,
    fw_row,
    fw_cpu_counts,
    fw_misc_count,
    fw_event,
    conn_key,
    conn,
    frag_key,
    frag,
    rl_limit,
    rl_rules,
    rl_set,
    rl_bucket,
    rl_back,
    rl_common,
    rl_host,
    rl_rule_count,
    rl_cpu_counts,
    rl_event,
    syn_order,
    syn_host,
    syn_iface,
    syn_counts,
    xdp_meta,
    steer_count,
    mirror_table,
    mirror_count,
    ids_record,
    ids_entry,
    ids_back,
    ids_scratch,
    ids_count,
    ids_counts,
    block_flow,
    block_address,
    block,
    block_policy,
    fw_question,
    fw_answered,
    fw_upper,
    rl_answered
);

/// The bytes of a plain value, as the kernel takes them.
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: T is plain data without padding, so all its bytes are initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// Reads a plain value from the front of `bytes`, however they are aligned; `None` when there are too few.
pub fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, any bit pattern is a valid T, and read_unaligned asks for no alignment.
    (bytes.len() >= size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
