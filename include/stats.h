/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Losses and what could not be parsed: exact, per CPU, written by xdp_firewall and tc_egress, read by the agent. */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_misc_count);
} misc_counts SEC(".maps");

static __always_inline struct fw_misc_count *misc_count(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&misc_counts, &zero);
}
