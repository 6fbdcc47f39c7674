# tutorials: documents whose commands the tests run (tests/system/tutorials.sh), and the demonstration.

demo: all images
	@sh tutorials/demo.sh $(B)
