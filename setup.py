"""Builds fastrnn's binaries; everything declarative is in pyproject.toml.

fastrnn/_C.*.so              pybind11, no torch: build facts and the kernel plan
fastrnn/libfastrnn_cpu.so    the ops and their CPU kernels, on torch's stable ABI
fastrnn/libfastrnn_cuda.so   their CUDA kernels; built where torch is a CUDA build and an nvcc is found
fastrnn/lib/libfastrnn_stream.so, .a   the runtime behind fastrnn.h: no torch, no Python, C++'s runtime alone

The first two libraries know no Python and run under every torch from MIN_TORCH on, so neither links
libpython nor libtorch_python: `-z defs` makes the linker refuse a symbol that would need them.

Environment (all optional):
    FASTRNN_CUDA=0|1        leave the CUDA kernels out, or stop with an error where they cannot be built
    FASTRNN_CUDA_ARCHS      such as "8.0;9.0a+PTX", or "all" for ALL_ARCHS, as wheels have them; by default
                            those of the GPUs of this machine, and where there is none ONE_ARCH
    FASTRNN_ONLY            the one binary to build, by its name: libfastrnn_stream
    FASTRNN_SANITIZE=1      AddressSanitizer and UBSan, CPU only, in object folders of their own
    FASTRNN_LINK            more arguments for the linker, after all others; see tools/wheels.py
    FASTRNN_TORCH_LIB       where libtorch_cpu lies that is linked with, for another system than this one; see
                            tools/cross.py
    FASTRNN_PYTHON_INCLUDE  where another CPython's Python.h lies, which the module is then for; see
                            tools/packing.py
    CUDA_HOME, CXX, MAX_JOBS   as everywhere
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from glob import glob
from pathlib import Path

import setuptools
import torch
from setuptools import Extension, setup

sys.path.insert(0, os.path.abspath("tools"))
import needs

MIN_TORCH = (2, 11)
MIN_SETUPTOOLS = 77  # older ones, such as new environments of Python 3.10 hold, cannot read pyproject.toml
# For wheels. 8.0 runs on 8.6 and 8.9 too, which would add a third to the time of the build; PTX of 10.0 is
# for 11.0, that of the newest for GPUs to come.
ALL_ARCHS = ["8.0", "9.0a", "10.0+PTX", "12.0+PTX"]
# Where no GPU says what to build for: machine code for one architecture, and PTX for all others, which the
# driver compiles when a kernel is first needed. 9.0, because thread block clusters begin there: it is the
# oldest that has every kernel, and later GPUs run its PTX, clusters included. They would not run that of
# 9.0a, and no kernel has an instruction that only 9.0a knows. PTX of 8.0, which has no clusters, is for
# Ampere and Ada: they cannot run that of 9.0. Measured on one file, this compiles in two fifths of the time
# that ALL_ARCHS takes.
ONE_ARCH = ["8.0-virtual", "9.0+PTX"]
OLDEST_GPU = (8, 0)
SANITIZE = os.environ.get("FASTRNN_SANITIZE", "0") not in ("", "0")
ONLY = os.environ.get("FASTRNN_ONLY", "")
CSRC = os.path.abspath("csrc")  # absolute: ninja runs elsewhere
if sysconfig.get_platform().endswith("universal2"):  # python.org's for macOS; torch is for one processor
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
    os.environ.setdefault("_PYTHON_HOST_PLATFORM", f"macosx-11.0-{platform.machine()}")
# What is built for: "linux", "x86_64". Another system than this one is named as CPython's own build names it.
SYSTEM, *_, MACHINE = (os.environ.get("_PYTHON_HOST_PLATFORM") or sysconfig.get_platform()).split("-")
MACHINE = {"arm64": "aarch64", "amd64": "x86_64"}.get(MACHINE, MACHINE)
VERSION = re.search(r'__version__ = "(.+?)"', Path("fastrnn/_version.py").read_text()).group(1)

if int(setuptools.__version__.split(".")[0]) < MIN_SETUPTOOLS:
    raise SystemExit(
        f"fastrnn needs setuptools >= {MIN_SETUPTOOLS} to build, found {setuptools.__version__}: "
        f"pip install 'setuptools>={MIN_SETUPTOOLS}'"
    )
if tuple(map(int, torch.__version__.split(".")[:2])) < MIN_TORCH:
    raise SystemExit(f"fastrnn needs torch >= {'.'.join(map(str, MIN_TORCH))}, found {torch.__version__}")


def nvcc_version(home):
    """'13.0.88' of the toolkit in home, None where there is none that is complete and runs."""
    try:
        out = subprocess.check_output([Path(home, "bin", "nvcc"), "--version"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\bV(\d+(?:\.\d+)+)", out)
    return found.group(1) if found and Path(home, "include", "cuda_runtime.h").exists() else None


def find_cuda():
    """(CUDA folder, compiler version), or (None, '') for a CPU-only build."""
    switch = os.environ.get("FASTRNN_CUDA", "").strip()
    if switch not in ("", "0", "1"):
        raise SystemExit(f"FASTRNN_CUDA: expected 0 or 1, got {switch!r}")
    if switch == "0" or SANITIZE:
        return None, ""
    wanted = torch.version.cuda
    if wanted is None:
        if switch == "1":
            raise SystemExit(f"FASTRNN_CUDA=1, but torch {torch.__version__} here is not a CUDA build")
        return None, ""
    major = wanted.split(".")[0]
    # A compiler that CUDA_HOME names comes first; then the pip wheels', which sit next to this torch
    # because somebody chose them for it; then the system's.
    wheel = Path(sysconfig.get_path("purelib"), "nvidia", f"cu{major}")
    on_path = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"), wheel]
    candidates += [Path(on_path).resolve().parents[1] if on_path else None, "/usr/local/cuda"]
    seen = []
    for home in filter(None, candidates):
        version = nvcc_version(home)
        if version and version.split(".")[0] == major:
            print(f"fastrnn: CUDA kernels by nvcc {version} in {home}")
            return str(home), version
        seen.append(f"{home} ({'nvcc ' + version if version else 'no toolkit'})")
    report = (
        f"torch {torch.__version__} needs nvcc {major}.x; found: {', '.join(seen)}. It comes with CUDA or by "
        f"`pip install 'cuda-toolkit[nvcc,crt,cccl,nvvm]=={wanted}.*'`"
    )
    if switch == "1":
        raise SystemExit(f"FASTRNN_CUDA=1, but {report}")
    print(f"fastrnn: building without CUDA kernels: {report}")
    return None, ""


def gpus_here():
    """The architectures of this machine's GPUs that kernels are compiled for: [] or ['8.6', '9.0']."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = sorted({torch.cuda.get_device_capability(i) for i in range(count)})
    return [f"{major}.{minor}" for major, minor in found if (major, minor) >= OLDEST_GPU]


@cache
def cuda_archs(home):
    """The architectures to compile: ['8.0-virtual', '9.0+PTX']. What is -virtual, as CMake writes it, is PTX
    alone."""
    asked = os.environ.get("FASTRNN_CUDA_ARCHS", "").strip(";, \t\n")
    if asked and asked != "all":
        return list(filter(None, re.split(r"[;,\s]+", asked)))
    listed = subprocess.check_output([Path(home, "bin", "nvcc"), "--list-gpu-arch"], text=True).split()
    here = [] if asked else gpus_here()
    known = [a for a in here or ALL_ARCHS if "compute_" + re.sub(r"\D", "", a) in listed]
    if not asked and (not here or known != here):  # a GPU newer than the compiler runs PTX, too
        known = ONE_ARCH
    return [*known[:-1], known[-1].removesuffix("+PTX") + "+PTX"]


def gencode(arch):
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX|-virtual)?", arch)
    if not match:
        raise SystemExit(
            f'FASTRNN_CUDA_ARCHS: expected "all" or a list such as 8.0;9.0a;12.0+PTX, got {arch!r} in it'
        )
    number, kind = "".join(match.group(1, 2, 3)), match.group(4)
    targets = [f"sm_{number}"] * (kind != "-virtual") + [f"compute_{number}"] * bool(kind)
    return [f"-gencode=arch=compute_{number},code={target}" for target in targets]


# The ninja beside this interpreter, in an environment that nobody activated.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
CUDA_HOME, CUDA_COMPILER = find_cuda()
if CUDA_HOME:
    os.environ["CUDA_HOME"] = CUDA_HOME  # read when cpp_extension is imported
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths  # noqa: E402


@cache
def is_clang():
    """Whether the C++ compiler is one, by whatever name: macOS's c++ and g++ are."""
    try:
        command = [*shlex.split(os.environ.get("CXX") or "c++"), "--version"]
        return "clang" in subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.CalledProcessError):  # which is told where something is built
        return False


CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
if not is_clang():
    CXX_FLAGS += ["-Wno-maybe-uninitialized"]  # gcc 12 imagines it in every std::optional<Tensor>
# Kernels read no errno and no floating-point traps; without them gcc vectorises freely. Python's own
# flags, which come first, would make signed overflow defined: indices would cost more, and UBSan see less.
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-wrapv"]
# The linkers of macOS and Windows know neither these nor a need for them.
LINK_FLAGS = ["-Wl,-z,defs", "-Wl,--as-needed", "-Wl,--exclude-libs,ALL"] if SYSTEM == "linux" else []
if SANITIZE:
    CXX_FLAGS += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    CXX_FLAGS += ["-fno-omit-frame-pointer"]
    LINK_FLAGS += ["-fsanitize=address,undefined"]
LINK_LAST = shlex.split(os.environ.get("FASTRNN_LINK", ""))
TORCH_LIB = os.environ.get("FASTRNN_TORCH_LIB")
PYTHON_INCLUDE = list(filter(None, [os.environ.get("FASTRNN_PYTHON_INCLUDE")]))  # before this CPython's own
# The oldest torch whose stable ABI is used: one binary then serves every newer one.
STABLE_ABI = [f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"]


# Every plan but the CPU's.
CUDA_PLAN = [f"csrc/plan/{name}.cpp" for name in ("cuda", "table", "geometry", "trust")]


def sources(*patterns):
    return sorted(path for pattern in patterns for path in glob(pattern, recursive=True))


@cache
def instruction_sets():
    """{name: flags of its files} of those whose kernels are compiled: what the target's processors have,
    whichever this one is."""
    lines = Path("csrc/cpu/isa/flags.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line[:1] != "#"]
    return {name: flags for machine, name, *flags in rows if machine == MACHINE} or {"baseline": []}


def flags_of(source):
    """What a file is compiled with beside the others' flags: its instruction set."""
    path = Path(source)
    name = path.stem.removesuffix("_scan") if path.parent.name == "isa" else None
    return tuple(instruction_sets().get(name, ()))


def python_module():
    import pybind11

    facts = {
        "FASTRNN_VERSION": VERSION,
        "FASTRNN_CUDA_ARCHS": ";".join(cuda_archs(CUDA_HOME)) if CUDA_HOME else "",
        "FASTRNN_CUDA_COMPILER": f"nvcc {CUDA_COMPILER}" if CUDA_HOME else "",
        "FASTRNN_TORCH_BUILD": torch.__version__,
    }
    return Extension(
        "fastrnn._C",
        sources("csrc/python*.cpp", "csrc/plan/*.cpp"),
        # torch's for dlpack.h, plain C
        include_dirs=[CSRC, *PYTHON_INCLUDE, pybind11.get_include(), *include_paths()],
        define_macros=[(name, f'"{value}"') for name, value in facts.items()],
        extra_compile_args=CXX_FLAGS,
        extra_link_args=LINK_FLAGS[1:] + LINK_LAST,  # a Python module's Python symbols are the interpreter's
    )


def cpu_library():
    return Extension(
        "fastrnn.libfastrnn_cpu",
        sources(
            *("csrc/ops/*.cpp", "csrc/plan/cpu.cpp", "csrc/plan/scan.cpp", "csrc/plan/quantized.cpp"),
            "csrc/cpu/ops/*.cpp",
            *("csrc/cpu/isa/choose.cpp", "csrc/cpu/isa/processor.cpp"),
            *(f"csrc/cpu/isa/{name}{scan}.cpp" for name in instruction_sets() for scan in ("", "_scan")),
            *(f"csrc/cpu/quantized/isa/{name}.cpp" for name in instruction_sets()),
        ),
        include_dirs=[CSRC, *include_paths()],
        library_dirs=[TORCH_LIB] if TORCH_LIB else library_paths(),
        libraries=["torch_cpu", *(["dl"] if SYSTEM == "linux" else [])],
        extra_compile_args=CXX_FLAGS + STABLE_ABI,
        extra_link_args=LINK_FLAGS + LINK_LAST,
    )


def cuda_library():
    flags = [*STABLE_ABI, "-DUSE_CUDA"]
    nvcc = ["-O3", "-std=c++20", "--threads=2", "-Xcompiler=-fvisibility=hidden,-g0"]
    # torch's default flags take the operators of __half and __nv_bfloat16 away.
    nvcc += [f"-U__CUDA_NO_{x}__" for x in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS")]
    nvcc += ["-U__CUDA_NO_HALF2_OPERATORS__"]
    nvcc += [flag for arch in cuda_archs(CUDA_HOME) for flag in gencode(arch)]
    return Extension(
        "fastrnn.libfastrnn_cuda",
        sources("csrc/cuda/**/*.cpp", "csrc/cuda/**/*.cu", *CUDA_PLAN),
        include_dirs=[CSRC, *include_paths("cuda")],
        library_dirs=library_paths("cuda"),
        # The runtime is linked in: the pip wheels have no libcudart.so to link to, and the library
        # then needs of its surroundings only the driver that torch has loaded.
        libraries=["torch_cuda", "torch_cpu", "cudart_static", "dl", "rt", "pthread"],
        extra_compile_args={"cxx": CXX_FLAGS + flags, "nvcc": nvcc + flags},
        extra_link_args=LINK_FLAGS + LINK_LAST,
    )


def stream_library():
    named = ["-Wl,-soname,libfastrnn_stream.so", f"-Wl,--version-script={CSRC}/stream/exports.map"]
    return Extension(
        "fastrnn.lib.libfastrnn_stream",
        sources(
            *("csrc/stream/*.cpp", "csrc/stream/isa/choose.cpp", "csrc/cpu/isa/processor.cpp"),
            *(f"csrc/stream/isa/{name}.cpp" for name in instruction_sets()),
        ),
        include_dirs=[CSRC, os.path.abspath("fastrnn/include")],
        define_macros=[("FASTRNN_VERSION", f'"{VERSION}"')],
        extra_compile_args=CXX_FLAGS,
        extra_link_args=[*LINK_FLAGS, *named, *LINK_LAST],
    )


class Build(BuildExtension):
    def get_ext_filename(self, name):
        if name.rpartition(".")[2].startswith("lib"):  # a plain library: one file for every Python
            return name.replace(".", os.sep) + (".dll" if SYSTEM == "win" else ".so")
        return super().get_ext_filename(name)

    def build_extension(self, ext):
        # An object folder for each: torch keeps one ninja file in a folder, and plan/cpu.cpp is compiled
        # with other flags in each of the three. One for each list of architectures, too: going from
        # `make test` to `make wheel` and back compiles nothing again.
        shared, name = self.build_temp, ext.name.rpartition(".")[2]
        archs = "-" + "_".join(cuda_archs(CUDA_HOME)) if name == "libfastrnn_cuda" else ""
        self.build_temp = os.path.join(shared, name + "-asan" * SANITIZE + archs)
        try:
            if name == "libfastrnn_stream":
                self.build_runtime(ext)
            else:
                self.compile_apart(ext)
                super().build_extension(ext)
        finally:
            self.build_temp = shared

    def compile_apart(self, ext):
        """What has flags of its own becomes objects first: those of an extension are for all of its files.
        Side by side, as most of the time goes into one file of each; where MAX_JOBS is set, that is the
        limit."""
        groups = {}
        for source in ext.sources:
            groups.setdefault(flags_of(source), []).append(source)
        ext.sources = groups.pop((), [])

        def compile_group(number, flags):
            return self.objects_of(ext, groups[flags], f"apart-{number}", flags)

        together = self.use_ninja and not os.environ.get("MAX_JOBS")
        with ThreadPoolExecutor(len(groups) or 1 if together else 1) as pool:
            for objects in pool.map(compile_group, range(len(groups)), sorted(groups)):
                ext.extra_objects += objects

    def objects_of(self, ext, sources, folder, flags=()):
        return self.compiler.compile(
            sources,
            output_dir=os.path.join(self.build_temp, folder),  # torch keeps one ninja file in a folder
            include_dirs=ext.include_dirs,
            macros=ext.define_macros,
            extra_postargs=[*ext.extra_compile_args, *flags],
        )

    def build_runtime(self, ext):
        """From the same objects a shared and a static library. Neither is told of torch or of Python."""
        self.compile_apart(ext)
        objects = ext.extra_objects + self.objects_of(ext, ext.sources, "plain")
        shared = Path(self.get_ext_fullpath(ext.name))
        shared.parent.mkdir(parents=True, exist_ok=True)
        link = shlex.split(os.environ.get("LDCXXSHARED") or f"{os.environ.get('CXX') or 'c++'} -shared")
        self.spawn([*link, *objects, "-o", str(shared), *ext.extra_link_args])
        static = shared.with_suffix(".a")
        static.unlink(missing_ok=True)  # ar would add to it
        self.spawn([*shlex.split(os.environ.get("AR") or "ar"), "rcs", str(static), *objects])

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        for static in Path(self.build_lib, "fastrnn", "lib").glob("*.a"):
            self.copy_file(str(static), os.path.join("fastrnn", "lib", static.name))

    def run(self):
        wanted = [*PYTHON_INCLUDE, *needs.headers()] if ONLY in ("", "_C") else []
        if lacking := needs.missing(os.environ, wanted):
            raise SystemExit(needs.said(lacking))
        super().run()
        if not CUDA_HOME and not ONLY:  # none of an earlier build may stay beside the new binaries
            for folder in (self.build_lib, "." if self.inplace else self.build_lib):
                Path(folder, "fastrnn", "libfastrnn_cuda.so").unlink(missing_ok=True)


def binaries():
    known = {"_C": python_module, "libfastrnn_cpu": cpu_library}
    if SYSTEM == "linux":  # whose linker the runtime asks for its name and its list of symbols
        known["libfastrnn_stream"] = stream_library
    if CUDA_HOME:
        known["libfastrnn_cuda"] = cuda_library
    if ONLY and ONLY not in known:
        raise SystemExit(f"FASTRNN_ONLY: expected one of {', '.join(known)}, got {ONLY!r}")
    return [make() for name, make in known.items() if ONLY in ("", name)]


setup(
    ext_modules=binaries(),
    cmdclass={"build_ext": Build},
)
