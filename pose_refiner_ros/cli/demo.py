# SPDX-License-Identifier: Apache-2.0
"""The demo: a simulated camera, the pose refiner and a printer as three ROS 2 processes.

    python -m pose_refiner_ros.cli.demo [--seconds 30] [--output demo_output]

This process only starts and ends the others; it is no ROS node itself. The exit status is 0 if the
poses were good.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pose_refiner_ros.files.config_files import config_file, fastdds_environment

LIBRARY = Path(__file__).resolve().parents[1] / "data" / "demo_objects.yaml"
START_SECONDS = 80  # for the node to load; the first time it compiles kernels
DOMAIN = "77"
NOT_CONFIGURED = "not configured; "  # what the node logs then; it waits for a remedy


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why."""


class Demo:
    """The three processes."""

    def __init__(self, options):
        self.options = options
        self.output = Path(options.output).absolute()
        self.output.mkdir(parents=True, exist_ok=True)
        self.environment = demo_environment(os.environ)
        self._processes = {}  # name -> Popen
        self._logs = {}  # name -> path

    def start(self, name, module, parameters, logged=True):
        arguments = ["--ros-args"]
        for key, value in parameters.items():
            arguments += ["-p", f"{key}:={value}"]
        output = None
        if logged:
            self._logs[name] = self.output / f"{name}.log"
            output = open(self._logs[name], "wb")  # noqa: SIM115, closed below
        try:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT if logged else None,
                # Ctrl-C in the terminal is for this process alone, which ends them in order.
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    def run(self):
        """The printer's exit status."""
        options = self.options
        self.start(
            "node",
            "pose_refiner_ros.ros.node",
            {"objects_file": LIBRARY, "device": options.device},
        )
        self.start(
            "printer",
            "pose_refiner_ros.ros.demo_printer",
            {"output": self.output, "rate": float(options.rate)},
            logged=False,
        )
        self.start(
            "camera",
            "pose_refiner_ros.ros.demo_camera",
            {
                "seconds": float(options.seconds),
                "rate": float(options.rate),
                "receivers": 2,
                "wait_seconds": float(START_SECONDS),
            },
        )
        camera_status = self._wait_for_camera(START_SECONDS + 2 * options.seconds + 20)
        if camera_status:
            raise DemoError(f"the camera ended with status {camera_status}{self._tail('camera')}")
        status = self.end("printer", 30)
        if status:
            print(self._tail("node").strip())
        return status

    def _wait_for_camera(self, seconds):
        deadline = time.monotonic() + seconds
        while self._processes["camera"].poll() is None:
            for name in ("node", "printer"):
                status = self._processes[name].poll()
                if status is not None:
                    raise DemoError(f"the {name} ended with status {status}{self._tail(name)}")
            if NOT_CONFIGURED in self._logs["node"].read_text(errors="replace"):
                raise DemoError(f"the node could not load its objects{self._tail('node')}")
            if time.monotonic() > deadline:
                raise DemoError(f"the drive is not over after {seconds:g} s{self._tail('node')}")
            time.sleep(0.1)
        return self._processes["camera"].returncode

    def end(self, name, seconds):
        """Ask a process to end, and make it; its exit status."""
        process = self._processes.get(name)
        if process is None:
            return None
        if process.poll() is None:
            process.terminate()  # not SIGINT: while Python still imports, that prints a traceback
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode

    def end_all(self):
        for name, seconds in (("camera", 5), ("printer", 30), ("node", 10)):
            self.end(name, seconds)

    def _tail(self, name, lines=15):
        path = self._logs.get(name)
        if path is None or not path.exists():
            return ""
        last = path.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"; the end of {path}:", *last])


def demo_environment(environment):
    """Only this machine, a domain of its own, enough shared memory; what is set already stays."""
    defaults = {"ROS_DOMAIN_ID": DOMAIN, "PYTHONUNBUFFERED": "1"}
    if environment.get("ROS_DISTRO") == "humble":
        defaults["ROS_LOCALHOST_ONLY"] = "1"
    else:
        defaults["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return {**defaults, **fastdds_environment(environment), **environment}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m pose_refiner_ros.cli.demo",
        description="A simulated drive past several vehicles, estimated over ROS 2.",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the drive")
    parser.add_argument("--rate", type=float, default=10.0, help="images per second")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", default="demo_output", help="folder for video, bag and logs")
    options = parser.parse_args(arguments)
    demo = Demo(options)
    rviz = config_file("refine.rviz")
    print(
        f"Loading the node, at most {START_SECONDS} s: it compiles its kernels the first time. "
        f"Logs: {demo.output}\n"
        f"Watch it in another terminal: ROS_DOMAIN_ID={demo.environment['ROS_DOMAIN_ID']} "
        f"rviz2 -d {rviz}",
        flush=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        return demo.run()
    except KeyboardInterrupt:
        print("\ninterrupted", flush=True)
        return 130
    except DemoError as error:
        print(f"\nFAILED: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave them behind
        demo.end_all()


if __name__ == "__main__":
    sys.exit(main())
