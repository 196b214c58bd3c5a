"""Counts from machine code, on a listing that is short enough to count by hand."""

import sys

import pytest

from repository import ROOT

sys.path.append(str(ROOT / "tools"))

from sass import functions, innermost_loops

pytestmark = pytest.mark.alone

# One loop in another. The inner one skips one or two of its instructions, depending on P1.
LISTING = """
	code for sm_90
		Function : first
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;              /* 0x00000a00ff017b82 */
                                                                       /* 0x000fe20000000800 */
        /*0010*/                   UMOV UR4, 0xf0 ;                    /* 0x00000a00ff017b82 */
        /*0020*/                   LDG.E.EL.128 R12, desc[UR12][R12.64] ;
        /*0030*/              @!P1 BRA 0x60 ;
        /*0040*/                   LDG.E.U16 R4, desc[UR12][R18.64] ;
        /*0050*/                   BRA 0x70 ;
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/              @!P2 STG.E desc[UR14][R8.64], R4 ;
        /*0080*/                   BRA P3, 0x20 ;
        /*0090*/              @!P0 BRA 0x10 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   BRA 0xb0 ;
        /*00c0*/                   NOP ;
		Function : second
        /*0000*/               @P0 EXIT ;
        /*0010*/                   EXIT ;
"""


def test_instructions_of_each_function() -> None:
    found = functions(LISTING)
    assert {name: len(code) for name, code in found.items()} == {"first": 11, "second": 2}
    assert [x.is_final for x in found["second"]] == [False, True]


def test_the_shortest_iteration_of_the_innermost_loop() -> None:
    (loop,) = innermost_loops(functions(LISTING)["first"])
    assert [x.address for x in loop] == [0x20, 0x30, 0x60, 0x70, 0x80]
    assert sum(x.is_special for x in loop) == 1


def test_bytes_of_an_access() -> None:
    loads = [x.accessed("LDG") for x in functions(LISTING)["first"]]
    assert [size for size in loads if size] == [16, 2]
    assert sum(x.accessed("STG") for x in functions(LISTING)["first"]) == 4
