"""Build: protos are compiled into build/generated, Cython and C into extension modules, and build/view gets symlinks
that show type checkers and sibling cimports the package as it is imported.

YIKATONG_BUILD=debug builds without optimisation; YIKATONG_BUILD=sanitize adds address and undefined-behaviour sanitizers.
"""

import functools
import os
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)

PACKAGES = {
    "core": "core",
    "ext": "ext",
    "clients": "clients",
    "bench": "bench",
    "v1": "build/generated/yikatong/v1",
}
FLAGS = {
    "release": ["-O3", "-g1"],
    "debug": ["-O0", "-g"],
    "sanitize": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
}[os.environ.get("YIKATONG_BUILD", "release")]

# The flow of a tap, in order, and what stands around it.
ENGINE_C = "decode lookup verify decide price post respond batch register change late deny replay table"
ENGINE = [f"ext/{name}.c" for name in ENGINE_C.split()]
SM3 = ["ext/sm3_lanes4.c", "ext/sm3_avx2.c", "ext/sm3_avx512.c", "ext/sm3_path.c"]
SM4 = ["ext/sm4_generic.c", "ext/sm4_avx2.c", "ext/sm4_avx512.c", "ext/sm4_path.c"]


def compile_protos() -> None:
    """Generate yikatong.v1 (messages, type stubs, gRPC stubs) when a proto is newer than what was generated."""
    from grpc_tools import protoc

    out = ROOT / "build/generated"
    protos = sorted(Path("proto/yikatong/v1").glob("*.proto"))
    stamp = out / "stamp"
    if stamp.exists() and all(stamp.stat().st_mtime > proto.stat().st_mtime for proto in protos):
        return
    out.mkdir(parents=True, exist_ok=True)
    includes = ["-Iproto", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    targets = [str(proto.relative_to("proto")) for proto in protos]
    if protoc.main(["protoc", *includes, *outputs, *targets]) != 0:
        raise SystemExit("the protos do not compile")
    (out / "yikatong/v1/__init__.py").touch()
    (out / "yikatong/v1/py.typed").touch()
    stamp.touch()


def link_view() -> None:
    """Make build/view/yikatong/{core,ext,…}: the tree as it is imported, for mypy and cimport."""
    view = ROOT / "build/view/yikatong"
    view.mkdir(parents=True, exist_ok=True)
    for package, folder in PACKAGES.items():
        link = view / package
        if not link.is_symlink():
            link.symlink_to(ROOT / folder, target_is_directory=True)


def extension(name: str, sources: list[str]) -> Extension:
    """An extension module of a package folder: "ext/engine" is yikatong.ext.engine, from ext/engine.pyx and C sources."""
    folder = name.split("/")[0]
    return Extension(
        f"yikatong.{name.replace('/', '.')}",
        [f"{name}.pyx", *sources],
        include_dirs=[folder, numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden", *FLAGS],
        extra_link_args=[flag for flag in FLAGS if flag.startswith("-fsanitize")],
        depends=[str(path) for path in Path(folder).glob("*.h")],
    )


@functools.cache
def nghttp2_flags() -> tuple[list[str], list[str]] | None:
    """Arguments for the compiler and for the linker, or None where nghttp2 is not there to build with."""
    try:
        found = subprocess.run(["pkg-config", "--cflags", "--libs", "libnghttp2"], capture_output=True, text=True, check=False)
        if found.returncode == 0:
            flags = shlex.split(found.stdout)
            link = [flag for flag in flags if flag.startswith(("-l", "-L", "-Wl"))]
            return [flag for flag in flags if flag not in link], link
    except OSError:
        pass  # no pkg-config; the header may stand where the compiler looks anyway
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("#include <nghttp2/nghttp2.h>\nint main(void) { return nghttp2_version(0) == 0; }\n")
        command = [*compiler, str(source), "-o", str(source.with_suffix("")), "-lnghttp2"]
        try:
            built = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            built = False
    return ([], ["-lnghttp2"]) if built else None


def http2_extensions() -> list[Extension]:
    """The tap port's transport and the load generator, where nghttp2 is there."""
    flags = nghttp2_flags()
    if flags is None:
        return []
    made = [extension("ext/transport", ["ext/grpc_server.c"])]
    if Path("bench/load.pyx").exists():
        made.append(extension("bench/load", ["bench/load_client.c"]))
    for module in made:
        module.extra_compile_args += flags[0]
        module.extra_link_args += [*flags[1], "-lm", "-ldl"]
    return made


compile_protos()
link_view()
setup(
    options={"build_ext": {"parallel": os.cpu_count()}},
    ext_modules=cythonize(
        [
            extension("ext/sm3", SM3),
            extension("ext/sm2", ["ext/sm2_openssl.c"]),
            extension("ext/sm4", SM4),
            extension("ext/key_holder", ["ext/sm4_gcm.c", *SM4, *SM3]),
            extension("ext/engine", ENGINE + SM4),
            extension("ext/fares", ["ext/price.c"]),
            extension("bench/openssl_mac", ["bench/openssl_evp.c"]),
            *http2_extensions(),
        ],
        build_dir="build/cython",
        include_path=["build/view"],
        language_level=3,
    ),
)
