// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* No program: one object of each shared type, so that BTF has it and libbpf-cargo makes the one Rust definition. */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct fw_tables abi_fw_tables;
struct fw_control abi_fw_control;
struct fw_flow_set_v4 abi_fw_flow_set_v4;
struct fw_flow_set_v6 abi_fw_flow_set_v6;
struct fw_near abi_fw_near;
struct fw_row abi_fw_row;
struct fw_cpu_counts abi_fw_cpu_counts;
struct fw_misc_count abi_fw_misc_count;
struct fw_event abi_fw_event;
struct conn_key abi_conn_key;
struct conn abi_conn;
struct frag_key abi_frag_key;
struct frag abi_frag;
struct rl_limit abi_rl_limit;
struct rl_rules abi_rl_rules;
struct rl_set abi_rl_set;
struct rl_back abi_rl_back;
struct rl_common abi_rl_common;
struct rl_host abi_rl_host;
struct rl_cpu_counts abi_rl_cpu_counts;
struct rl_event abi_rl_event;
struct syn_order abi_syn_order;
struct syn_host abi_syn_host;
struct syn_iface abi_syn_iface;
struct syn_service abi_syn_service;
struct syn_counts abi_syn_counts;
struct xdp_meta abi_xdp_meta;
struct steer_count abi_steer_count;
struct mirror_table abi_mirror_table;
struct mirror_count abi_mirror_count;
struct fw_question abi_fw_question;
struct fw_answered abi_fw_answered;
struct fw_upper abi_fw_upper;
struct rl_answered abi_rl_answered;

enum fw_limits abi_fw_limits;
enum fw_mode abi_fw_mode;
enum fw_flow_limits abi_fw_flow_limits;
enum fw_uses abi_fw_uses;
enum fw_answer abi_fw_answer;
enum fw_stride abi_fw_stride;
enum fw_trie_word abi_fw_trie_word;
enum fw_policy_limits abi_fw_policy_limits;
enum fw_rp_filter abi_fw_rp_filter;
enum fw_uppers_limits abi_fw_uppers_limits;
enum fw_reason abi_fw_reason;
enum fw_verdict abi_fw_verdict;
enum fw_unparsable abi_fw_unparsable;
enum fw_state abi_fw_state;
enum fw_counts abi_fw_counts;
enum fw_while abi_fw_while;
enum conn_origin abi_conn_origin;
enum conn_phase abi_conn_phase;
enum rl_algorithm abi_rl_algorithm;
enum rl_scope abi_rl_scope;
enum rl_action abi_rl_action;
enum rl_limits abi_rl_limits;
enum syn_result abi_syn_result;
enum syn_service_state abi_syn_service_state;
enum syn_limits abi_syn_limits;
enum rl_place abi_rl_place;
enum xdp_chain abi_xdp_chain;
enum xdp_meta_limits abi_xdp_meta_limits;
enum steer_limits abi_steer_limits;
enum mirror_limits abi_mirror_limits;
enum mirror_loss abi_mirror_loss;
enum fw_exception abi_fw_exception;
