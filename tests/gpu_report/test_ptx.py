"""The PTX reader, on a kernel written by hand whose bulk path can be counted by eye."""

from collections import Counter

from bench.gpu_report import ptx

KERNEL = """
.visible .entry kernel(.param .u64 data, .param .u64 table)
{
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [data];
	ld.param.b64 	%rd2, [table];
	ld.global.b64 { %rd3 }, [ %rd2 + 0 ];   // the same address for every thread: a table, not data
	mov.u32 	%r1, %tid.x;
	shl.b32 	%r2, %r1, 4;
	cvt.u64.u32 	%rd4, %r2;
	add.s64 	%rd5, %rd1, %rd4;
	setp.eq.b64 	%p1, %rd3, 0;
	@%p1 bra 	$L__LOOP;
	ld.global.v4.b32 { %r3, %r4, %r5, %r6 }, [ %rd5 + 0 ];
	ld.global.L1::evict_last.v2.b64 { %rd6, %rd7 }, [ %rd5 + 16 ];
	st.global.v4.b32 [ %rd5 + 0 ], { %r3, %r4, %r5, %r6 };
	bra.uni 	$L__END;
$L__LOOP:
	@%p2 ld.global.b32 { %r7 }, [ %rd5 + 0 ];
	@%p2 st.global.b16 [ %rd5 + 0 ], { %rs1 };
	@%p3 bra 	$L__LOOP;
$L__END:
	@%p4 atom.global.gpu.relaxed.add.f64 %rd8, [ %rd5 + 0 ], %rd6;
	ret;
}
"""


def count(accesses):
    return Counter((a.store, a.bits) for a in accesses)


def test_the_wide_branch_is_the_bulk_path_and_table_reads_are_no_data():
    assert count(ptx.bulk(KERNEL)) == {(False, 128): 2, (True, 128): 1}


def test_a_loop_counts_once_and_wins_where_it_moves_more():
    loop = KERNEL.replace("\t@%p3", "\tld.global.v8.b64 { %rd8 }, [ %rd5 + 64 ];\n" * 2 + "\t@%p3")
    assert count(ptx.bulk(loop)) == {(False, 32): 1, (False, 512): 2, (True, 16): 1}


def test_addresses_are_followed_through_loads():
    """A pointer that a thread loaded from its own place is the thread's own; one from a table is everybody's."""
    text = KERNEL.replace("[ %rd5 + 16 ]", "[ %rd3 + 16 ]")
    assert count(ptx.bulk(text)) == {(False, 128): 1, (True, 128): 1}
    text = KERNEL.replace("[ %rd2 + 0 ]", "[ %rd5 + 8 ]").replace("[ %rd5 + 16 ]", "[ %rd3 + 16 ]")
    assert count(ptx.bulk(text)) == {(False, 64): 1, (False, 128): 2, (True, 128): 1}
