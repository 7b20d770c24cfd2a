# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `pose_refiner`: images and instance masks in, 6-DoF poses out.

Threads: the executor's, in which every callback runs and none works long; and the worker, which
loads the objects, computes the poses and publishes them.
"""

import functools
import time
import traceback

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.task import Future as RosFuture
from std_srvs.srv import Trigger

from pose_refiner_ros.ros import diagnostics, log_bridge, parameters, watchdog
from pose_refiner_ros.ros.bad_input import BadInput, TransformError
from pose_refiner_ros.ros.camera_set import CameraSet
from pose_refiner_ros.ros.frame_assembler import FrameAssembler, InputCounts, SyncOptions
from pose_refiner_ros.ros.inputs import Inputs
from pose_refiner_ros.ros.loading import LoadError, load
from pose_refiner_ros.ros.outputs import Outputs
from pose_refiner_ros.ros.reports import ReportLog
from pose_refiner_ros.ros.scene_camera import SceneCamera, initial_pose
from pose_refiner_ros.ros.statistics import Statistics
from pose_refiner_ros.ros.transforms import TransformLookup
from pose_refiner_ros.ros.worker import Worker

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
# How long a transition, and the end of the process, wait for the frame at hand.
FRAME_SECONDS = 10.0
END_SECONDS = 1.0


def _logged(transition):
    """rclpy turns an exception in a transition into ERROR and says nothing."""

    @functools.wraps(transition)
    def wrapper(self, state):
        try:
            return transition(self, state)
        except Exception:
            self.get_logger().error(f"{transition.__name__}: {traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR

    return wrapper


class PoseRefinerNode(LifecycleNode):
    """See docs/ros.md for topics and services, docs/parameters.md for parameters."""

    def __init__(self, pipeline_factory=None, **node_options):
        """pipeline_factory(library, parameters) may stand in for the real pipeline."""
        super().__init__("pose_refiner", **node_options)
        parameters.declare(self)
        for text in parameters.unknown_overrides(self):
            self.get_logger().warning(text)
        self._pipeline_factory = pipeline_factory
        self._log_handler = log_bridge.connect(self.get_logger())
        self._reports = ReportLog(self.get_logger())
        self._statistics = Statistics()
        self._assembler = FrameAssembler(
            on_skip=self._statistics.skip, on_jump_back=self._on_jump_back
        )
        self._loading = None  # Future of a FrameProcessor, while it is made
        self._prepared = None  # a FrameProcessor that the next configure takes
        self._processor = None
        self._load_error = ""
        self._transforms = TransformLookup(self)
        self._inputs = None
        self._others = {}  # name -> Inputs of further cameras
        self._cameras = CameraSet(self._assembler, {})
        self._outputs = None
        self._scene = None  # a SceneCamera, where there is a scene_field
        self._scene_next = False  # of masks and images that wait, which are looked at first
        self._active_since = None
        self._errors_reported = 0
        self._worker = Worker(
            self._take,
            self._process,
            lambda: self._cameras.wait_seconds(time.monotonic()),
            self._on_error,
        )
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(Trigger, "~/reload_objects", self._on_reload_objects)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Not the node's clock: a paused simulation must not silence the diagnostics.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(
            self.get_parameter("diagnostics_period").value, self._on_tick, clock=steady
        )
        self._autostart_timer = None
        if self.get_parameter("autostart").value:
            self._autostart_timer = self.create_timer(0.05, self._autostart, clock=steady)

    # ---- lifecycle ----

    def _autostart(self):
        """Load in the background, then do what a lifecycle manager would do."""
        if self._state() != "unconfigured":
            self._autostart_timer.cancel()
        elif self._loading is None and self._prepared is None:
            self._start_loading()
        elif self._loading is None or self._loading.done():
            self._autostart_timer.cancel()
            if self.trigger_configure() == SUCCESS:
                self.trigger_activate()

    def _start_loading(self):
        values = parameters.read(self)
        source = f"'{values.objects_file}'" if values.objects_file else "the package: vehicles"
        self.get_logger().info(f"loading objects from {source}")
        self._loading = self._worker.submit(load, values, self._pipeline_factory)
        return self._loading

    def _finish_loading(self):
        """Wait for loading and keep its result; False if it failed."""
        loading = self._loading or self._start_loading()
        try:
            self._prepared = loading.result()
            self._load_error = ""
        except LoadError as error:
            self._load_error = str(error)
            self.get_logger().error(self._load_error)
            if error.__cause__ is not None:
                self.get_logger().debug("".join(traceback.format_exception(error.__cause__)))
        except Exception as error:  # a fault of the program: its trace is needed
            self._load_error = f"{type(error).__name__}: {error}"
            self.get_logger().error(traceback.format_exc())
        finally:
            self._loading = None
        return not self._load_error

    @_logged
    def on_configure(self, state):
        if self._prepared is None and not self._finish_loading():
            self.get_logger().error(
                "not configured; mend the above, then call ~/reload_objects or configure again"
            )
            return FAILURE
        self._processor, self._prepared = self._prepared, None
        library = self._processor.library
        self._processor.transforms = self._transforms
        self._outputs = Outputs(self, library, self._transforms)
        if self._processor.scene is not None:
            self._scene = SceneCamera(self, self._processor.scene, self._transforms)
            field = self.get_parameter("scene_field").value
            self.get_logger().info(f"the camera is localised in the scene of '{field}'")
        self.get_logger().info(f"{len(library)} objects loaded: {', '.join(library)}")
        if self._processor.encoder is not None:
            categories = {model.category for model in library.values()}
            classes = self._processor.encoder.classes
            named = ", ".join(one for one in classes if one in categories)
            others = ", ".join(one for one in classes if one not in categories)
            text = f"; {others}: known to it, but no object has that category" if others else ""
            self.get_logger().info(f"the encoder names masks without a class: {named}{text}")
        return super().on_configure(state)

    @_logged
    def on_activate(self, state):
        values = parameters.read(self)
        frames = {"target_frame": values.target_frame, "fixed_frame": values.fixed_frame}
        if len(values.cameras) > 1:
            frames["cameras"] = ", ".join(values.cameras)
        if self._scene is not None:
            frames["scene_tf_child"] = values.scene_tf_child
        for name, frame in frames.items():
            if not frame:
                continue
            try:
                self._transforms.start()
            except TransformError as error:
                self.get_logger().error(
                    f"{name} is '{frame}', but {error}; install it, or leave {name} empty"
                )
                return FAILURE
        if self._scene is not None:
            try:
                self._scene.first = initial_pose(values.scene_initial_pose)
            except ValueError as error:
                self.get_logger().error(f"scene_initial_pose is no pose: {error}")
                return FAILURE
            self._scene.reset()
        result = super().on_activate(state)  # enables the publishers
        self._assembler.clear()
        self._assembler.counts = InputCounts()
        self._statistics.last_answer = None
        self._processor.reset()
        first, *others = [name for name in values.cameras if name] or [""]
        self._cameras = CameraSet(
            self._assembler, {name: FrameAssembler(self._statistics.skip) for name in others}
        )
        depth_transport = "" if values.depth == "never" else values.depth_transport
        compressed = values.image_transport == "compressed"

        def subscribe(assembler, camera):
            wake = self._worker.wake
            return Inputs(self, assembler, wake, compressed, depth_transport, camera)

        self._inputs = subscribe(self._assembler, first)
        self._others = {name: subscribe(one, name) for name, one in self._cameras.others.items()}
        self._inputs.look_at_graph()
        self._active_since = time.monotonic()
        topics = ", ".join(self._inputs.topics().values())
        self.get_logger().info(f"active; subscribed to {topics}")
        return result

    @_logged
    def on_deactivate(self, state):
        self._stop_work()
        return super().on_deactivate(state)

    @_logged
    def on_cleanup(self, state):
        self._free()
        return super().on_cleanup(state)

    @_logged
    def on_shutdown(self, state):
        self._stop_work(END_SECONDS)
        self._free()
        return super().on_shutdown(state)

    @_logged
    def on_error(self, state):
        self._stop_work()
        self._free()
        super().on_error(state)
        return SUCCESS  # back to unconfigured

    def _stop_work(self, timeout=FRAME_SECONDS):
        self._active_since = None
        if self._inputs is not None:
            for inputs in (self._inputs, *self._others.values()):
                inputs.destroy()
            self._inputs, self._others = None, {}
        self._cameras.clear()
        if not self._worker.wait_idle(timeout):
            self.get_logger().warning("the worker is still busy")
        if self._outputs is not None:
            self._outputs.clear_markers()

    def _free(self):
        if self._outputs is not None:
            self._outputs.destroy()
            self._outputs = None
        if self._scene is not None:
            self._scene.destroy()
            self._scene = None
        self._processor = None

    def _state(self):
        return self._state_machine.current_state[1]

    # ---- services ----

    def _on_reset(self, request, response):
        self._cameras.clear()
        processor = self._processor
        if processor is not None:
            self._worker.submit(self._forget)
            self._outputs.clear_markers()
        response.success = True
        response.message = "waiting messages and followed objects forgotten"
        return response

    async def _on_reload_objects(self, request, response):
        response.success, response.message = await self._reload_objects()
        return response

    async def _reload_objects(self):
        """(success, message). What is loaded stays in use if the new objects cannot be."""
        before = self._state()
        autostart = self.get_parameter("autostart").value
        if self._loading is not None:
            return False, "objects are being loaded already"
        if before == "unconfigured" and not autostart:
            return False, "the node is not configured; configure loads the objects"
        await self._finished(self._start_loading())
        if not self._finish_loading():
            return False, self._load_error
        if self._state() != before:
            return False, f"the node became {self._state()} meanwhile"
        if before == "active":
            self.trigger_deactivate()
        if before in ("active", "inactive"):
            self.trigger_cleanup()
        if self.trigger_configure() != SUCCESS:
            return False, self._load_error or "configure failed; see the log"
        if before != "inactive" and self.trigger_activate() != SUCCESS:
            return False, "activate failed; see the log"
        library = self._processor.library
        message = f"{len(library)} objects: {', '.join(library)}"
        for name, why in library.problems.items():
            message += f"; {name} left out: {why}"
        return True, message

    async def _finished(self, job):
        """Await the end of a worker's job without blocking the executor."""
        done = RosFuture(executor=self.executor)
        job.add_done_callback(lambda _: done.set_result(True))
        await done

    # ---- frames, in the worker thread ----

    def _take(self):
        inputs = self._inputs
        if self._active_since is None or inputs is None:
            return None
        values = parameters.read(self)
        self._assembler.options = _sync_options(values, inputs)
        for name, other in self._others.items():
            self._cameras.others[name].options = _sync_options(values, other)
        # in turns, so that neither keeps the worker from the other
        self._scene_next = not self._scene_next
        for of_scene in (self._scene_next, not self._scene_next):
            if not of_scene:
                alive = {name for name, one in self._others.items() if one.expected("masks")}
                messages = self._cameras.take(time.monotonic(), alive)
            else:
                messages = self._assembler.take_image() if self._scene is not None else None
            if messages is not None:
                return messages, values
        return None

    def _process(self, frame):
        messages, values = frame
        if isinstance(messages, tuple):
            self._find_objects(*messages, values)
        else:
            self._locate_camera(messages, values)

    def _locate_camera(self, messages, values):
        try:
            self._scene.process(messages, values, self._reports.warn)
        except (BadInput, TransformError) as error:
            self._scene.state = str(error)
            self._reports.warn(f"scene: {error}")

    def _find_objects(self, messages, others, missing, values):
        for text in missing:
            self._report(text)
        started = time.monotonic()
        outputs = self._outputs
        try:
            answer = self._processor.process(
                messages, values, outputs.overlay_wanted, self._report, others
            )
            outputs.publish(answer, values)
        except BadInput as error:
            self._statistics.skip(error.kind, str(error))
            self._reports.warn(str(error))
            return
        except TransformError as error:
            self._statistics.skip("no transform into target_frame", str(error))
            self._reports.warn(str(error), kind="transform")
            return
        now = time.monotonic()
        latency = self.get_clock().now().nanoseconds - messages.stamp
        self._statistics.answered(
            now,
            latency / 1e9 if messages.stamp else float("nan"),
            now - started,
            len(answer.poses),
            answer.objects,
            answer.reasons,
        )
        self._statistics.add_joined([one.frames for one in answer.poses if one.sighting])
        outputs.publish_overlay(answer)
        outputs.publish_scene_view(answer, values, self._reports.warn)

    def _report(self, text):
        self._statistics.leave_out(self._reports.warn(text))

    def _on_error(self, error):
        """A frame failed for a reason that nobody thought of. The next one may not."""
        text = f"{type(error).__name__}: {error}"
        self._statistics.error(text)
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._reports.error(
            f"a frame failed: {text}\n{trace}",
            kind=type(error).__name__,
        )

    def _on_jump_back(self):
        """Stamps went back: a bag that loops, or a simulation started anew."""
        self.get_logger().info("stamps jumped back: followed objects are forgotten")
        if self._processor is not None:
            self._worker.submit(self._forget)

    def _forget(self):
        """What was followed, in the worker thread."""
        self._processor.reset()
        if self._scene is not None:
            self._scene.reset()

    # ---- monitoring ----

    def _on_tick(self):
        now = time.monotonic()
        silence = scene_silence = ""
        if self._active_since is not None:
            self._inputs.look_at_graph()
            silence, scene_silence = self._silence(now), self._scene_silence(now)
            if silence:
                self._reports.warn(f"no pose for some seconds: {silence}")
            if scene_silence:
                self._reports.warn(
                    f"no image for the camera's pose for some seconds: {scene_silence}"
                )
        errors = self._statistics.errors
        processor, scene = self._processor, self._scene
        name = self.get_fully_qualified_name().lstrip("/")
        statuses = [
            diagnostics.objects_status(
                name,
                self.get_parameter("objects_file").value,
                processor.library if processor else None,
                self._load_error,
                self._loading is not None,
                getattr(processor.pipeline, "device", "") if processor else "",
                processor.encoder if processor else None,
            ),
            diagnostics.poses_status(
                name,
                self._state(),
                self._statistics,
                self._assembler.counts,
                silence,
                errors > self._errors_reported,
                now,
            ),
        ]
        if scene is not None:
            statuses.append(diagnostics.scene_status(name, self._state(), scene, scene_silence))
        self._diagnostics.publish(diagnostics.array(statuses, self.get_clock().now().to_msg()))
        self._errors_reported = errors

    def _silence(self, now):
        """Why no pose was published lately; "" if one was, or if there was none to find."""
        values = parameters.read(self)
        since = max(self._active_since, self._statistics.last_answer or 0.0)
        if not values.watchdog_seconds or now - since < values.watchdog_seconds:
            return ""
        views = self._inputs.views()
        if self._scene is not None and not views["masks"].published_as:
            return ""  # nobody wants objects: the scene has a status of its own
        busy_since = self._worker.busy_since
        return watchdog.explain(
            watchdog.Situation(
                **views,
                require_image=values.require_image,
                use_detections=values.use_detections,
                nearest=dict(self._assembler.counts.nearest),
                skipped=self._statistics.skipped_since_answer(),
                last_reasons=self._statistics.last_reasons,
                busy_seconds=now - busy_since if busy_since else 0.0,
                sync_slop=values.sync_slop,
            )
        )

    def _scene_silence(self, now):
        """Why no image was looked at for the camera's pose lately; "" if one was."""
        seconds = self.get_parameter("watchdog_seconds").value
        if self._scene is None or not seconds or self._worker.busy_since:
            return ""
        if now - max(self._active_since, self._scene.last_image or 0.0) < seconds:
            return ""
        views = self._inputs.views()
        return watchdog.explain_images(views["image"], views["camera_info"])

    def close(self):
        """Stop; False if the worker is stuck in something long."""
        if self._state() in ("unconfigured", "inactive", "active"):
            self.trigger_shutdown()
        stopped = self._worker.stop(END_SECONDS)
        log_bridge.disconnect(self._log_handler)
        return stopped


def _sync_options(values, inputs):
    """How the messages of a camera are paired."""
    return SyncOptions(
        sync_slop=values.sync_slop,
        sync_timeout=values.sync_timeout,
        require_image=values.require_image,
        use_detections=values.use_detections,
        initial_pose_max_age=values.initial_pose_max_age,
        points_max_age=values.points_max_age,
        buffer_size=values.buffer_size,
        buffer_megabytes=values.buffer_megabytes,
        images_expected=inputs.expected("image"),
        depth_expected=inputs.expected("depth"),
        depth_stopped=inputs.stopped("depth"),
        detections_expected=inputs.detections_expected,
    )
