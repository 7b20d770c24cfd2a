# SPDX-License-Identifier: Apache-2.0
"""Everything slow that has to be done before the first frame. Runs in the worker thread, as do the
imports of the core, which take seconds."""


class LoadError(RuntimeError):
    """The node cannot be configured; the text says why and what to do."""


def load(parameters, pipeline_factory=None):
    """A FrameProcessor for the objects and device that the parameters name, ready to run."""
    from pose_refiner_ros.warp_start import start_warp_quietly

    start_warp_quietly()
    from pose_refiner_ros import shipped
    from pose_refiner_ros.objects.library import ObjectLibrary, ObjectLibraryError
    from pose_refiner_ros.ros.frame_processor import FrameProcessor

    try:
        library = ObjectLibrary.load(parameters.objects_file or shipped.OBJECTS)
    except ObjectLibraryError as error:
        raise LoadError(f"the object library cannot be used: {error}") from None
    try:
        pipeline = (pipeline_factory or default_pipeline)(library, parameters)
        pipeline.warm_up()
        if pipeline_factory is None:  # ~/overlay and ~/scene_view must not stop a frame later on
            from pose_refiner_ros.drawing import scene_view

            scene_view.warm_up(library)
    except shipped.EncoderChoiceError as error:
        raise LoadError(f"the encoder cannot be used: {error}") from None
    except Exception as error:
        raise LoadError(
            f"the pipeline cannot start on device '{parameters.device}': "
            f"{type(error).__name__}: {error}"
        ) from error
    processor = FrameProcessor(pipeline, library)
    if parameters.scene_field:
        processor.scene = load_scene(parameters)
    return processor


def load_scene(parameters):
    """A SceneTracker for the field that scene_field names, ready to run. Raises LoadError."""
    from pose_refiner_ros.fields.field import FieldError
    from pose_refiner_ros.fields.field_file import load_field
    from pose_refiner_ros.pipeline import choose_device
    from pose_refiner_ros.scene_localiser import LocalisationError, SceneLocaliser, SceneTracker
    from pose_refiner_ros.settings import Settings

    settings = Settings(
        sampling=parameters.photo_sampling,
        photo_rays=parameters.photo_rays,
        exposure=parameters.photo_exposure,
        init=parameters.init,
    )
    try:
        device = choose_device(parameters.device)
        localiser = SceneLocaliser(load_field(parameters.scene_field), settings, device)
    except (FieldError, LocalisationError) as error:
        raise LoadError(f"scene_field cannot be used: {error}") from None
    localiser.warm_up()
    return SceneTracker(localiser)


def default_pipeline(library, parameters):
    """The Pipeline of a library, with its encoder where it has one. Raises EncoderChoiceError."""
    from pose_refiner_ros.pipeline import Pipeline, Settings, choose_device
    from pose_refiner_ros.shipped import choose_encoder

    device = choose_device(parameters.device)
    encoder = choose_encoder(library, parameters.encoder_file, device, parameters.refinement)
    if encoder is not None and parameters.refinement == "solver":
        import torch

        # The network is small: waiting for a core that others use would take longer than it saves.
        torch.set_num_threads(1)
    settings = Settings(
        refinement=parameters.refinement,
        photometric=parameters.photometric,
        depth=parameters.depth,
        photo_rays=parameters.photo_rays,
        sampling=parameters.photo_sampling,
        exposure=parameters.photo_exposure,
        init=parameters.init,
    )
    return Pipeline(library, settings, device, encoder)
